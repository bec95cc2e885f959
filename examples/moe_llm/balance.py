"""How evenly rows were spread over ranks, before experts moved and after.

Called by report.py and checks.py with what the ranks left. Not here: deciding what moves (rebalancing.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from job import RankStats


@dataclass(frozen=True)
class Balance:
    """Rows by layer and rank."""

    before: np.ndarray  # until the experts served from their new ranks
    after: np.ndarray  # since then
    unmoved: np.ndarray  # the same rows as `after`, had no expert moved


def balance_of(stats: list[RankStats]) -> Balance | None:
    """None if nothing has moved in time."""
    moved = stats[0].moved
    if moved is None or moved.ready is None:
        return None
    before, after = (np.array([np.sum(rank.loads[part].rows, axis=1) for rank in stats]).T for part in (0, 1))
    # The placement before has no replicas, so it says of every row where it would have gone.
    by_expert = rows_by_expert(stats, 1)
    unmoved = [
        by_expert[:, [expert for expert in slots if expert >= 0]].sum(axis=1) for slots in moved.before
    ]
    return Balance(before, after, np.array(unmoved).T)


def rows_by_expert(stats: list[RankStats], part: int) -> np.ndarray:
    """(layers, experts): of all ranks, before experts moved (0) or after (1)."""
    hosts = [rank.loads for rank in stats if rank.loads]
    experts = 1 + max(max(loads[0].experts) for loads in hosts)
    rows = np.zeros((len(hosts[0][0].rows), experts), np.int64)
    for loads in hosts:
        for load in loads[part : part + 1]:
            np.add.at(rows, (slice(None), load.experts), np.array(load.rows, np.int64))
    return rows


def above_mean(rows: np.ndarray) -> float:
    """Of the hottest rank of a layer, on average: in every layer, everybody waits for it. 0.05 is 5 % more rows."""
    return float(rows.max(axis=1).sum() / rows.mean(axis=1).sum() - 1)


def describe_moved(stats: list[RankStats]) -> str:
    """How much, and when."""
    moved = stats[0].moved
    if moved is None:
        return "the text ended before enough rows were counted"
    ready = "not to the end" if moved.ready is None else f"to step {moved.ready}"
    return (
        f"{moved.experts} ({moved.bytes / 1e6:.1f} MB), from step {moved.begun} {ready} of {stats[0].steps}"
    )
