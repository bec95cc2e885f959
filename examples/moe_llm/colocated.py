"""The place where the expert layer runs, if every rank has both attention and experts: dispatch, experts, combine.

A place is a function (layer, x, topk_idx, topk_weights) -> y, for hidden states x of this rank's tokens (serving.py
calls it). Not here: choosing the experts (experts.py) and running them (local_experts.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from clock import PhaseClock
from local_experts import LocalExperts
from quantised import row_bytes

if TYPE_CHECKING:
    import xccl


class ColocatedExperts:
    """One ExpertParallel serves all layers."""

    def __init__(self, ep: xccl.ExpertParallel, local: LocalExperts, clock: PhaseClock) -> None:
        self.ep = ep
        self.local = local
        self._clock = clock
        self._row_bytes = row_bytes(ep.hidden, ep.dispatch_quant) + row_bytes(ep.hidden, ep.combine_quant)
        self._rows_from_others = 0

    @property
    def bytes_moved(self) -> int:
        """Of rows that this rank's experts got from other ranks, and of their results."""
        return self._rows_from_others * self._row_bytes

    def __call__(
        self, layer: int, x: np.ndarray, topk_idx: np.ndarray, topk_weights: np.ndarray
    ) -> np.ndarray:
        self._clock.switch("dispatch")
        d = self.ep.dispatch(x, topk_idx, topk_weights)
        self._clock.switch("experts")
        self._rows_from_others += int(np.count_nonzero(d.src_rank != self.ep.comm.rank))
        rows = self.local(layer, d)
        self._clock.switch("combine")
        y = self.ep.combine(rows, d)
        d.release()
        return np.asarray(y)

    def close(self) -> None:
        """Give its memory back."""
        self.ep.close()
