"""How long a message takes between two ranks, for several sizes: half the time there and back.

python -m xccl run -n 2 examples/python/ping_pong.py
"""

import time

import numpy as np

import xccl

ROUNDS = 200


def half_round_trip(comm: xccl.Communicator, x: np.ndarray, y: np.ndarray) -> float:
    """Microseconds, the median of ROUNDS."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        if comm.rank == 0:
            comm.send(x, dst=1)
            comm.recv(y, src=1)
        else:
            comm.recv(y, src=0)
            comm.send(y, dst=0)
        taken.append((time.perf_counter() - start) / 2 * 1e6)
    return sorted(taken)[ROUNDS // 2]


with xccl.init() as comm:
    if comm.size != 2:
        raise SystemExit("this example is for two ranks: python -m xccl run -n 2 ping_pong.py")
    for nbytes in (8, 1024, 65536, 1 << 20):
        # An array of comm.empty is read by the other rank where it lies; one of numpy's is copied by both.
        for kind, x in (("numpy", np.ones(nbytes, np.uint8)), ("comm.empty", comm.empty(nbytes, "uint8"))):
            x[:] = nbytes % 251
            y = np.zeros(nbytes, np.uint8)
            half = half_round_trip(comm, x, y)
            assert (y == nbytes % 251).all()
            if comm.rank == 0:
                print(f"{nbytes:>8} bytes from {kind:10} {half:9.2f} us")
