"""`rebalance`: a placement for a load, and the moves that lead to it from the present one.

Two ways are tried, and of all placements on them the best one is taken that the budget allows:
 - from the present placement, by the steps of search.py, each of which makes it a little better;
 - anew: the paper's greedy choice of replicas and places (greedy.py), and DeepSeek's, each improved the same way.
Which placements these are does not depend on the budget, so a larger budget can only lead to a better one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xccl.arguments import slots_by_rank, whole, whole_numbers
from xccl.eplb.greedy import place, replicas_by_total, replicas_by_windows
from xccl.eplb.hierarchical import rebalance_experts
from xccl.eplb.search import improved
from xccl.eplb.spread import EMPTY, Move, Placement, Spread, hosts_of, loads_of, moves_between, slotted
from xccl.errors import InvalidArgument


@dataclass(frozen=True)
class Rebalanced:
    """A placement, and what it takes to get there."""

    placement: list[list[int]]  #: for each rank the expert in each of its slots, EMPTY (-1) for none
    moves: tuple[Move, ...]  #: experts to be copied, and from where; all, where there was no placement before
    hottest: float  #: load of the hottest rank, added up over the windows
    mean: float  #: load of a living rank with slots, on average, likewise
    hottest_before: (
        float | None
    )  #: of the placement before, if every expert that has load was on a living rank

    @property
    def imbalance(self) -> float:
        """hottest / mean: 1 is perfect. 1 also where there is no load."""
        return self.hottest / self.mean if self.mean else 1.0


def rebalance(
    load: Any,
    slots: Sequence[int] | None = None,
    *,
    current: Placement | None = None,
    budget: int | None = None,
    dead_ranks: Sequence[int] = (),
) -> Rebalanced:
    """Places experts, and replicas of those with most load, so that the hottest rank has as little as possible.

    Args:
        load: tokens of each expert: (experts,), or (windows, experts) for several spans of time. With windows, what is
            made small is the sum of each window's hottest rank: a rank waits for the hottest in every call.
        slots: how many experts each rank has room for; they may differ, and be 0.
        current: instead of `slots`: the present placement. For each rank the experts in its slots, -1 for an empty one.
            What stays on its rank stays in its slot.
        budget: the most experts to be brought to a rank that does not host them now. A larger one never gives a hotter
            hottest rank. Only with `current`.
        dead_ranks: ranks that get nothing and of which nothing can be had.

    Every expert is placed at least once, and none twice on one rank; a slot that would not help stays empty. Equal
    arguments give equal results.

    Raises InvalidArgument; also if there are fewer slots on living ranks than experts, or if the budget is smaller than
    the number of experts that are on no living rank.
    """
    loads = loads_of(load)
    before = _before(loads.shape[1], slots, current)
    dead = sorted(set(whole_numbers("dead_ranks", dead_ranks, 0, len(before) - 1)))
    budget = _budget(budget, current)
    start = _start(loads, before, dead)
    lost = int((start.replicas == 0).sum())
    if budget is not None and lost > budget:
        raise InvalidArgument(
            f"budget={budget}: {lost} experts are on no living rank, so as many at least must be brought to one"
        )
    affordable = [
        spread
        for spread in _candidates(start, current is not None)
        if budget is None or spread.newcomers(start) <= budget
    ]
    best = min(affordable, key=lambda spread: (spread.hottest, spread.newcomers(start)))
    placement = slotted(
        best, [[EMPTY] * len(row) if r in dead else list(row) for r, row in enumerate(before)]
    )
    homeless = (start.replicas == 0) & (loads > 0).any(0)
    return Rebalanced(
        placement,
        moves_between(before, placement, dead),
        best.hottest,
        float(loads.sum()) / max(1, int((start.room > 0).sum())),
        None if current is None or homeless.any() else start.hottest,
    )


def _before(experts: int, slots: Sequence[int] | None, current: Placement | None) -> list[list[int]]:
    if (slots is None) == (current is None):
        raise InvalidArgument("rebalance takes either slots= or current=")
    if current is not None:
        before = slots_by_rank("current", current)
        hosts_of("current", before, experts)  # checks
        return before
    return [[EMPTY] * count for count in whole_numbers("slots", slots, 0)]


def _budget(budget: int | None, current: Placement | None) -> int | None:
    if budget is None:
        return None
    if current is None:
        raise InvalidArgument("budget= limits what is moved from current=, which is missing")
    return whole("budget", budget, 0)


def _start(loads: Any, before: list[list[int]], dead: list[int]) -> Spread:
    """What living ranks host now."""
    room = np.array([0 if rank in dead else len(row) for rank, row in enumerate(before)], np.int64)
    if room.sum() < loads.shape[1]:
        raise InvalidArgument(
            f"living ranks have {room.sum()} slots: expected one for each of {loads.shape[1]} experts at least"
        )
    hosts = hosts_of("current", before, loads.shape[1])
    hosts[:, dead] = False
    return Spread(loads, room, hosts)


def _candidates(start: Spread, present: bool) -> Iterator[Spread]:
    """Placements of every expert. The first, if there is a present one, brings only the experts that are nowhere."""
    for root in [*[_complete(start)] * present, *_anew(start)]:
        yield root
        yield from improved(root)


def _complete(spread: Spread) -> Spread:
    """With every expert somewhere: those that are nowhere, heaviest first, where the hottest rank stays coolest.

    They take free slots, or the place of an expert that another rank has too. One such there is, since there are as
    many slots as experts.
    """
    lost = np.flatnonzero(spread.replicas == 0)
    for expert in lost[np.argsort(-spread.load.sum(0)[lost], kind="stable")].tolist():
        options = [spread.hosting((expert, rank, True)) for rank in np.flatnonzero(spread.free > 0).tolist()]
        if not options:
            redundant = np.argwhere(spread.hosts & (spread.replicas > 1)[:, None]).tolist()
            options = [
                spread.hosting((other, rank, False), (expert, rank, True)) for other, rank in redundant
            ]
        spread = min(options, key=lambda option: option.hottest)
    return spread


def _anew(start: Spread) -> Iterator[Spread]:
    """Placements that do not look at the present one."""
    load, room = start.load, start.room
    living = np.flatnonzero(room > 0)
    extra = min(int(room.sum()), load.shape[1] * len(living)) - load.shape[1]
    total = load.sum(0)
    yield Spread(load, room, place(load, replicas_by_windows(load, extra, len(living)), room))
    yield Spread(load, room, place(load, np.minimum(replicas_by_total(total, extra), len(living)), room))
    if (room[living] == room[living[0]]).all():
        phy2log, _, _ = rebalance_experts(total[None], int(room.sum()), 1, 1, len(living))
        hosts = np.zeros_like(start.hosts)
        hosts[phy2log[0], living.repeat(room[living[0]])] = True
        yield Spread(load, room, hosts)
