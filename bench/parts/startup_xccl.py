"""A program of its own: starts XCCL, meets the others once, tells the driver how long that took."""

from time import monotonic_ns

start = monotonic_ns()
import numpy  # noqa: E402, F401

import xccl  # noqa: E402

comm = xccl.init()
comm.barrier()
end = monotonic_ns()

from startup_report import report  # noqa: E402

report(comm.rank, start, end)
comm.close()
