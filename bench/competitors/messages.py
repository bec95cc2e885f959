"""Who competes in messages between two ranks: from C, from Python, and with borrowed arrays."""

from __future__ import annotations

from collections.abc import Iterator

from driver import native
from driver.launch import Team
from driver.question import FLOOR, OURS, PEER, Case, Competitor

from competitors.mpi import NAMES, OPEN_MPI_WITHOUT_CMA

LEAST_NON_TEMPORAL = 4096
FROM_C, FROM_PYTHON, BORROWED = "from C", "from Python", "borrowed, from Python"


def competitors(case: Case) -> list[Competitor]:
    """All of them. The case's work says in "by" which of the three it is."""
    by = case.work["by"]
    if by == FROM_C:
        return [_xccl_from_c(), *_mpis("c"), *_floors(case)]
    if by == FROM_PYTHON:
        return [*_xccl(), *_mpis("python"), _gloo(), *_floors(case)]
    return [*_borrowed()]


def _xccl() -> Iterator[Competitor]:
    team = Team("messages_xccl")
    yield Competitor("XCCL, private arrays", OURS, team, "private")
    yield Competitor("XCCL, arrays in the application area", OURS, team, "application")


def _xccl_from_c() -> Competitor:
    return Competitor(
        "XCCL, private arrays", OURS, Team("messages_xccl_c"), unless=native.why_no_xccl_loops()
    )


def _mpis(variant: str) -> Iterator[Competitor]:
    for mpi, name in NAMES.items():
        yield _mpi(name, mpi, variant, Team("messages_mpi", mpi, mpi, options=_loops(mpi)))
    name, settings, arguments = OPEN_MPI_WITHOUT_CMA
    team = Team("messages_mpi", "openmpi", "openmpi", settings, arguments, _loops("openmpi"))
    yield _mpi(name, "openmpi", variant, team)


def _mpi(name: str, mpi: str, variant: str, team: Team) -> Competitor:
    return Competitor(
        name, PEER, team, variant, unless=native.why_no_mpi_loops(mpi) if variant == "c" else None
    )


def _loops(mpi: str) -> tuple[tuple[str, str], ...]:
    return (("loops", f"loops_{mpi}"),)


def _gloo() -> Competitor:
    return Competitor("gloo", PEER, Team("messages_gloo", "torch", pinned=False), "python")


def _floors(case: Case) -> Iterator[Competitor]:
    for method in ("memcpy", "non-temporal"):
        # Stores past the caches are for what the caches do not hold.
        if method == "memcpy" or case.work["bytes"] >= LEAST_NON_TEMPORAL:
            yield _floor(f"floor, one copy, {method}", method)


def _floor(name: str, variant: str) -> Competitor:
    return Competitor(name, FLOOR, Team("messages_floor"), variant, unless=native.why_no_floor(variant))


def _borrowed() -> Iterator[Competitor]:
    yield Competitor("XCCL, recv_view", OURS, Team("messages_xccl"), "application")
    yield Competitor("iceoryx2, loaned samples", PEER, Team("messages_iceoryx2", "iceoryx2"))
    yield _floor("floor, only a flag", "memcpy")
