"""Who competes in all-to-all: from C, and from Python."""

from __future__ import annotations

from collections.abc import Iterator

from driver import native
from driver.launch import Team
from driver.question import FLOOR, OURS, PEER, Case, Competitor

from competitors.mpi import INTEL_MPI_WAITING, NAMES

LEAST_NON_TEMPORAL = 4096
FROM_C, FROM_PYTHON = "from C", "from Python"


def competitors(case: Case) -> list[Competitor]:
    """All of them. The case's work says in "by" from where."""
    crowd = case.ranks > 2
    if case.work["by"] == FROM_C:
        xccl = _xccl("all_to_all_xccl_c", native.why_no_xccl_loops())
        return [*xccl, *_mpis("c", crowd), *_floors(case)]
    gloo = Competitor("gloo", PEER, Team("all_to_all_gloo", "torch", pinned=False))
    return [*_xccl("all_to_all_xccl"), *_mpis("python", crowd), gloo, *_floors(case)]


def _xccl(part: str, unless: str | None = None) -> Iterator[Competitor]:
    yield Competitor("XCCL, private array", OURS, Team(part), "private", unless=unless)
    yield Competitor("XCCL, array in the application area", OURS, Team(part), "area", unless=unless)


def _mpis(variant: str, crowd: bool) -> Iterator[Competitor]:
    for mpi, name in NAMES.items():
        yield _mpi(name, mpi, variant, ())
    if crowd:
        name, settings, _ = INTEL_MPI_WAITING
        yield _mpi(name, "impi", variant, settings)


def _mpi(name: str, mpi: str, variant: str, settings: tuple[tuple[str, str], ...]) -> Competitor:
    team = Team("all_to_all_mpi", mpi, mpi, settings, options=(("loops", f"loops_{mpi}"),))
    return Competitor(
        name, PEER, team, variant, unless=native.why_no_mpi_loops(mpi) if variant == "c" else None
    )


def _floors(case: Case) -> Iterator[Competitor]:
    for method in ("memcpy", "non-temporal"):
        # Stores past the caches are for what the caches do not hold.
        if method == "memcpy" or case.work["bytes"] >= LEAST_NON_TEMPORAL:
            unless = native.why_no_floor(method)
            name = f"floor, one copy of each block, {method}"
            yield Competitor(name, FLOOR, Team("all_to_all_floor"), method, unless=unless)
