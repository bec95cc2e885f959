"""Who competes in which question, one file for each kind of work: XCCL, its peers, the floors."""
