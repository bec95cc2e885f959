"""Who competes in dispatch and combine. The best peer is the best of all combinations of transport and arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from driver import native
from driver.launch import Team
from driver.question import FLOOR, OURS, PEER, Case, Competitor

from competitors.mpi import INTEL_MPI_WAITING, NAMES

# torch then has its temporaries on huge pages, and need not fault every page of them in at every call.
HUGE = (("THP_MEM_ALLOC_ENABLE", "1"),)
MANY_TOKENS = 1024


def competitors(case: Case) -> list[Competitor]:
    """All of them: XCCL and the floors first, since memory may not suffice for everybody."""
    return [*_xccl(), *_floors(), *_mpis(case), *_gloo(case)]


def _pages(case: Case) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """How torch has its temporaries. What is large is known to be faster on huge pages; else both are tried."""
    small, large = ("torch", ()), ("torch on huge pages", HUGE)
    if case.ranks > 2:
        return [small]  # as many processes as it is
    return [large] if case.work["tokens"] >= MANY_TOKENS else [small, large]


def _xccl() -> Iterator[Competitor]:
    team = Team("moe_xccl")
    yield Competitor("XCCL, tokens in its input buffer", OURS, team, "input buffer")
    yield Competitor("XCCL, tokens in a private array", OURS, team, "private")


def _mpis(case: Case) -> Iterator[Competitor]:
    for mpi, name in NAMES.items():
        for pages, settings in _pages(case):
            yield _mpi(f"{name}, {pages}", mpi, "torch", settings)
        yield _mpi(f"{name}, numpy", mpi, "numpy")
    if case.ranks > 2:
        name, settings, _ = INTEL_MPI_WAITING
        yield _mpi(f"{name}, torch", "impi", "torch", settings)


def _mpi(name: str, mpi: str, compute: str, settings: tuple[tuple[str, str], ...] = ()) -> Competitor:
    return Competitor(name, PEER, Team("moe_mpi", mpi, mpi, settings, options=(("compute", compute),)))


def _gloo(case: Case) -> Iterator[Competitor]:
    # Pinning gloo pins its thread for the network to the same core as well, which makes it slower.
    for pages, settings in _pages(case):
        team = Team("moe_gloo", "torch", settings=settings, pinned=False)
        yield Competitor(f"gloo, {pages}", PEER, team)


def _floors() -> Iterator[Competitor]:
    team = Team("moe_floor")
    for method in ("memcpy", "non-temporal"):
        unless = native.why_no_floor(method)
        yield Competitor(f"floor, pull, {method}", FLOOR, team, f"pull {method}", unless=unless)
        yield Competitor(f"floor, push, {method}", FLOOR, team, f"push {method}", ("dispatch",), unless)
