"""What a rank does, one file for each library and question. rank.py imports one of them; they import no driver."""
