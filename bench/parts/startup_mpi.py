"""A program of its own: starts an MPI, meets the others once, tells the driver how long that took."""

from time import monotonic_ns

start = monotonic_ns()
import numpy  # noqa: E402, F401
from mpi4py import MPI  # noqa: E402

MPI.COMM_WORLD.Barrier()
end = monotonic_ns()

from startup_report import report  # noqa: E402

report(MPI.COMM_WORLD.rank, start, end)
