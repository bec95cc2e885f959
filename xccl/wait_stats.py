"""`WaitStats`: who waited for whom, as `Communicator.wait_stats` gives it and `python -m xccl ps --waits` prints it.

Not here: how waits are counted (csrc/sync/wait_log.hpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]
_MOST_COLUMNS = 12
_MOST_PAIRS = 20


@dataclass(frozen=True, eq=False)
class WaitStats:
    """Who waited for whom: element [i, j] is about rank i waiting for rank j.

    Every moment of a wait is charged to one rank: the one that is late, which in a barrier need not be the one that
    the waiting rank hears from. The diagonal is for waits for anybody: receives from any source. `str()` gives a
    table. Only waits that outlast their spin count (`python -m xccl doctor` tells how long that is), when they end.
    """

    count: _Array  #: int64, shape (size, size): how often
    total: _Array  #: float64, shape (size, size), seconds: how long in all
    longest: _Array  #: float64, shape (size, size), seconds: how long at most

    @property
    def waited(self) -> _Array:
        """Seconds that each rank has waited, shape (size,): sums over the rows of `total`."""
        sums: _Array = self.total.sum(axis=1)
        return sums

    @property
    def late(self) -> _Array:
        """Seconds that others have waited for each rank, shape (size,): sums over the columns, without the diagonal."""
        sums: _Array = self.total.sum(axis=0) - self.total.diagonal()
        return sums

    def __str__(self) -> str:
        size = len(self.total)
        lines = self._table() if size <= _MOST_COLUMNS else self._longest_pairs()
        if self.late.any():
            late = int(self.late.argmax())
            among = self.longest[:, late].copy()
            among[late] = 0.0
            lines.append(
                f"rank {late} was waited for most: {self.late[late]:.3f} s in all, {among.max():.3f} s at once; "
                f"it waited {self.waited[late]:.3f} s itself"
            )
        return "\n".join(lines)

    def _table(self) -> list[str]:
        ranks = range(len(self.total))
        titles = [*(f"for {rank}" for rank in ranks), "anybody", "waited"]
        lines = [f"{'seconds':<8}" + "".join(f"{title:>10}" for title in titles)]
        for rank in ranks:
            row = ["-" if rank == other else f"{self.total[rank, other]:.3f}" for other in ranks]
            row += [f"{self.total[rank, rank]:.3f}", f"{self.waited[rank]:.3f}"]
            lines.append(f"{f'rank {rank}':<8}" + "".join(f"{cell:>10}" for cell in row))
        lines.append(f"{'late':<8}" + "".join(f"{self.late[rank]:>10.3f}" for rank in ranks))
        return lines

    def _longest_pairs(self) -> list[str]:
        order = np.argsort(self.total, axis=None)[::-1][:_MOST_PAIRS]
        lines = [f"the {_MOST_PAIRS} pairs of {len(self.total)} ranks that waited longest, in seconds"]
        for waiter, late in zip(*np.unravel_index(order, self.total.shape), strict=True):
            whom = "anybody" if waiter == late else f"rank {late}"
            lines.append(
                f"rank {waiter} for {whom}: {self.total[waiter, late]:.3f} in {self.count[waiter, late]} waits, "
                f"at most {self.longest[waiter, late]:.3f}"
            )
        return lines
