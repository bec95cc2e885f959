"""Every rank gives every rank something else: equal shares, then as many rows as it likes.

python -m xccl run -n 4 examples/python/all_to_all.py
"""

import numpy as np

import xccl

with xccl.init() as comm:
    # Equal shares: piece r goes to rank r.
    mine = np.array([[100 * comm.rank + to] for to in range(comm.size)])
    got = comm.all_to_all(mine)
    assert got.ravel().tolist() == [100 * source + comm.rank for source in range(comm.size)]

    # Unequal ones: to rank r go r rows; nobody has to know beforehand how many come.
    counts = np.arange(comm.size)
    rows = np.repeat(np.arange(comm.size), counts)[:, None] + 1000.0 * comm.rank
    received, recv_counts = comm.all_to_all_v(rows, counts)
    assert recv_counts.tolist() == [comm.rank] * comm.size
    assert received.shape == (comm.rank * comm.size, 1)

    total = comm.all_reduce(np.array([len(received)], np.int64))
    if comm.rank == 0:
        print(f"{comm.size} ranks exchanged {int(total[0])} rows of their own choice")
