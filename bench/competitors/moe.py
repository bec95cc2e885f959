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
WORK = ("dispatch", "combine")
TO_TOKENS = "dispatch to tokens"  # in layout "token", which no peer has


def competitors(case: Case) -> list[Competitor]:
    """All of them: XCCL and the floors first, since memory may not suffice for everybody."""
    return [*_xccl(case), *_floors(case), *_mpis(case), *_gloo(case)]


def _pages(case: Case) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """How torch has its temporaries. What is large is known to be faster on huge pages; else both are tried."""
    small, large = ("torch", ()), ("torch on huge pages", HUGE)
    if case.ranks > 2:
        return [small]  # as many processes as it is
    return [large] if case.work["tokens"] >= MANY_TOKENS else [small, large]


def _xccl(case: Case) -> Iterator[Competitor]:
    team = Team("moe_xccl")
    yield Competitor("XCCL, tokens in its input buffer", OURS, team, "input buffer", WORK)
    yield Competitor("XCCL, tokens in a private array", OURS, team, "private", WORK)
    if TO_TOKENS in case.metrics:
        yield Competitor('XCCL, layout "token"', OURS, team, "tokens", (TO_TOKENS,))


def _mpis(case: Case) -> Iterator[Competitor]:
    for mpi, name in NAMES.items():
        for pages, settings in _pages(case):
            yield _mpi(f"{name}, {pages}", mpi, "torch", settings)
        yield _mpi(f"{name}, numpy", mpi, "numpy")
    if case.ranks > 2:
        name, settings, _ = INTEL_MPI_WAITING
        yield _mpi(f"{name}, torch", "impi", "torch", settings)


def _mpi(name: str, mpi: str, compute: str, settings: tuple[tuple[str, str], ...] = ()) -> Competitor:
    return Competitor(
        name, PEER, Team("moe_mpi", mpi, mpi, settings, options=(("compute", compute),)), metrics=WORK
    )


def _gloo(case: Case) -> Iterator[Competitor]:
    # Pinning gloo pins its thread for the network to the same core as well, which makes it slower.
    for pages, settings in _pages(case):
        team = Team("moe_gloo", "torch", settings=settings, pinned=False)
        yield Competitor(f"gloo, {pages}", PEER, team, metrics=WORK)


def _floors(case: Case) -> Iterator[Competitor]:
    team = Team("moe_floor")
    for method in ("memcpy", "non-temporal"):
        unless = native.why_no_floor(method)
        yield Competitor(f"floor, pull, {method}", FLOOR, team, f"pull {method}", WORK, unless)
        yield Competitor(f"floor, push, {method}", FLOOR, team, f"push {method}", ("dispatch",), unless)
        if TO_TOKENS in case.metrics:
            yield Competitor(f"floor, {method}", FLOOR, team, f"tokens {method}", (TO_TOKENS,), unless)
