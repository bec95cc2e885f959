"""Makes a spread better step by step: moves, swaps, adds or drops one replica of an expert on the hottest rank.

Used by rebalance.py. Each step lowers the sum over windows of the hottest rank's load; or keeps it, and lowers the sum
of squares of all loads, which leads out of ties. What gains most for each expert that is brought to another rank is
taken first: a swap brings two, a move one, a drop none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xccl.eplb.spread import Spread

Changes = tuple[tuple[int, int, bool], ...]  # of Spread.hosting

NOTHING = -1  # what a rank gives back when it takes an expert into a free slot


def improved(spread: Spread) -> Iterator[Spread]:
    """Ever better spreads, until no step makes it better; far fewer than the bound, which is against rounding."""
    for _ in range(16 + 4 * int(spread.room.sum())):
        better = _step(spread)
        if better is None:
            return
        yield better
        spread = better


def _step(spread: Spread) -> Spread | None:
    loads = spread.rank_loads
    for hot in _hot_ranks(loads):
        best = _Best(loads)
        _exchanges(spread, loads, hot, best)
        _replicas(spread, loads, hot, best)
        if best.changes:
            return spread.hosting(*best.changes)
    return None


def _hot_ranks(loads: Any) -> list[int]:
    """The ranks that are hottest in some window, the one with most above the mean first."""
    excess = loads - loads.mean(1, keepdims=True)
    above = np.where(loads == loads.max(1, keepdims=True), excess, 0).sum(0)
    return [int(rank) for rank in np.argsort(-above, kind="stable") if above[rank] > 0]


class _Best:
    """The best step seen so far, by (gain of the hottest, gain of the squares), each for one expert to be brought."""

    def __init__(self, loads: Any) -> None:
        self.hottest, self.squares = loads.max(1).sum(), (loads**2).sum()
        self.changes: Changes = ()
        self._gain = (0.0, 0.0)

    def offer(
        self, hottest: Any, squares: Any, cost: Any, allowed: Any, changes: Callable[..., Changes]
    ) -> None:
        """Takes the best of some steps, if it is better: arrays of what they lead to; changes(*index) is one step."""
        if hottest.size == 0:
            return
        first, second = self.hottest - hottest, self.squares - squares
        loss = first < -1e-9 * self.hottest  # less is rounding
        first = np.where(first > 1e-4 * self.hottest, first, 0) / cost  # less is not worth a step by itself
        second = np.where(second > 1e-6 * self.squares, second, 0) / cost
        first = np.where(allowed & ~loss & (first + second > 0), first, -1)
        index = np.unravel_index(np.lexsort((second.ravel(), first.ravel()))[-1], first.shape)
        gain = (float(first[index]), float(second[index]))
        if gain > self._gain:
            self._gain, self.changes = gain, changes(*map(int, index))


def _exchanges(spread: Spread, loads: Any, hot: int, best: _Best) -> None:
    """An expert leaves the hot rank for another one, which may give one back. All at once, as arrays."""
    mine = np.flatnonzero(spread.hosts[:, hot])
    shares = np.concatenate([spread.shares, np.zeros((len(loads), 1))], 1)  # the last: NOTHING
    others = [rank for rank in range(len(spread.room)) if rank != hot and spread.room[rank] > 0]
    back = [
        (rank, expert)
        for rank in others
        for expert in [*np.flatnonzero(spread.hosts[:, rank]), *[NOTHING] * bool(spread.free[rank] > 0)]
        if expert == NOTHING or not spread.hosts[expert, hot]
    ]
    if not back:
        return
    rank, expert = np.array(back).T
    delta = shares[:, mine, None] - shares[:, None, expert]  # (windows, mine, back)
    hot_then, rank_then = loads[:, hot, None, None] - delta, loads[:, None, rank] + delta
    rest = _hottest_without(loads, hot)[:, None, rank]
    hottest = np.maximum(np.maximum(hot_then, rank_then), rest).sum(0)
    before = loads[:, hot, None, None] ** 2 + loads[:, None, rank] ** 2
    squares = best.squares + (hot_then**2 + rank_then**2 - before).sum(0)
    allowed = ~spread.hosts[mine][:, rank]  # else it is there already

    def changes(i: int, j: int) -> Changes:
        there = ((int(mine[i]), hot, False), (int(mine[i]), int(rank[j]), True))
        if expert[j] == NOTHING:
            return there
        return (*there, (int(expert[j]), int(rank[j]), False), (int(expert[j]), hot, True))

    best.offer(hottest, squares, np.where(expert == NOTHING, 1, 2), allowed, changes)


def _hottest_without(loads: Any, hot: int) -> Any:
    """(windows, ranks): the hottest load of all ranks but the hot one and this one."""
    others = loads.copy()
    others[:, hot] = 0
    first = others.argmax(1)[:, None]
    second = others.copy()
    np.put_along_axis(second, first, 0, 1)
    ranks = np.arange(loads.shape[1])
    return np.where(ranks == first, second.max(1, keepdims=True), others.max(1, keepdims=True))


def _replicas(spread: Spread, loads: Any, hot: int, best: _Best) -> None:
    """An expert of the hot rank gets a replica elsewhere, perhaps in place of one that others have too; or leaves."""
    replicas = spread.replicas
    redundant = np.flatnonzero(replicas > 1)
    # With one replica fewer: what each of the others gets; and what ranks then have more, (windows, ranks, redundant).
    fewer = spread.load[:, redundant] / (replicas[redundant] - 1)
    more = (fewer - spread.shares[:, redundant])[:, None] * spread.hosts[redundant].T
    here = np.flatnonzero(spread.hosts[redundant, hot])
    then = loads[:, :, None] + more[:, :, here]
    then[:, hot] -= fewer[:, here]

    def drop(i: int) -> Changes:
        return ((int(redundant[here[i]]), hot, False),)

    best.offer(then.max(1).sum(0), (then**2).sum((0, 1)), 0.5, True, drop)

    # Ranks with what they can give up; the last of `fewer` and `more`: NOTHING.
    fewer = np.concatenate([fewer, np.zeros((len(loads), 1))], 1)
    more = np.concatenate([more, np.zeros((*loads.shape, 1))], 2)
    given_up = np.concatenate([spread.hosts[redundant], (spread.free > 0)[None]])
    for expert in np.flatnonzero(spread.hosts[:, hot]).tolist():
        rank, other = np.nonzero((given_up & ~spread.hosts[expert]).T)
        share = spread.load[:, expert, None] / (replicas[expert] + 1)
        base = loads + (share - spread.shares[:, expert, None]) * spread.hosts[expert]
        then = base[:, :, None] + more[:, :, other]
        then[:, rank, np.arange(len(rank))] += share - fewer[:, other]

        def add(i: int, expert: int = expert, rank: Any = rank, other: Any = other) -> Changes:
            added = ((expert, int(rank[i]), True),)
            if other[i] == len(redundant):
                return added
            return (*added, (int(redundant[other[i]]), int(rank[i]), False))

        best.offer(then.max(1).sum(0), (then**2).sum((0, 1)), 1, True, add)
