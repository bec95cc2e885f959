"""Who competes in starting up: each library with its own launcher."""

from __future__ import annotations

from driver.launch import Team
from driver.question import OURS, PEER, Case, Competitor

from competitors.mpi import NAMES


def competitors(case: Case) -> list[Competitor]:
    """All of them."""
    xccl = Team("", launcher="xccl", program="parts/startup_xccl.py")
    return [
        Competitor("XCCL, python -m xccl run", OURS, xccl),
        *(
            Competitor(f"{name}, mpi4py", PEER, Team("", mpi, mpi, program="parts/startup_mpi.py"))
            for mpi, name in NAMES.items()
        ),
    ]
