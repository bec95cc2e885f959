"""The three MPIs, as they are named in tables and started."""

from __future__ import annotations

NAMES = {"impi": "Intel MPI", "openmpi": "Open MPI", "mpich": "MPICH"}

# Settings worth a line of their own, since nobody knows beforehand which is faster: name, settings, arguments.
OPEN_MPI_WITHOUT_CMA = ("Open MPI without CMA", (), ("--mca", "smsc", "^cma,knem,xpmem"))
INTEL_MPI_WAITING = ("Intel MPI, waiting", (("I_MPI_WAIT_MODE", "1"), ("I_MPI_THREAD_YIELD", "3")), ())
