"""The long run, `make soak`: rounds of random operations with checked results, and ranks killed now and then.

A round is one job, and all of it follows from its seed: who does what, on what, with whom (schedule.py). Every rank
derives the same schedule and, in numpy, what the others give and what it must get (scene.py and the operations), so
ranks need not talk about it. `python -m soak --help` in the folder tests/ (__main__.py).
"""
