"""The place where the expert layer runs, if every rank has both attention and experts: dispatch, experts, combine.

Made by place.py, which says what a place is. Not here: choosing the experts (experts.py), running them
(local_experts.py) and moving them (rebalancing.py).
"""

from __future__ import annotations

import numpy as np
from clock import PhaseClock
from experts import MoeWeights
from job import Job, Moved, SlotLoad
from local_experts import LocalExperts
from quantised import row_bytes
from rebalancing import Rebalancing, blocks_with_room

import xccl


class ColocatedExperts:
    """One ExpertParallel serves all layers."""

    traffic = None

    def __init__(
        self, comm: xccl.Communicator, job: Job, moe: MoeWeights, topk: int, clock: PhaseClock
    ) -> None:
        self.token_ranks = comm
        self._ep = ep = xccl.ExpertParallel(
            comm,
            num_experts=moe.experts,
            hidden=moe.hidden,
            max_tokens=job.max_tokens,
            topk=topk,
            dtype="float32",
            dispatch_quant=job.quant,
            combine_quant=job.quant,
            placement=blocks_with_room(moe.experts, comm.size) if job.form.rebalance else None,
        )
        self._local = LocalExperts(moe, ep.local_experts, job.broken_expert, movable=job.form.rebalance)
        self._rebalancing = Rebalancing(ep, self._local, moe.layers) if job.form.rebalance else None
        self._clock = clock
        self._row_bytes = row_bytes(ep.hidden, ep.dispatch_quant) + row_bytes(ep.hidden, ep.combine_quant)
        self._rows_from_others = 0

    def __call__(
        self, layer: int, x: np.ndarray, topk_idx: np.ndarray, topk_weights: np.ndarray
    ) -> np.ndarray:
        self._clock.switch("dispatch")
        d = self._ep.dispatch(x, topk_idx, topk_weights)
        self._clock.switch("experts")
        self._rows_from_others += int(np.count_nonzero(d.src_rank != self._ep.comm.rank))
        rows = self._local(layer, d)
        self._clock.switch("combine")
        y = self._ep.combine(rows, d)
        d.release()
        if self._rebalancing is not None:
            self._clock.switch("moving")
            self._rebalancing.after_layer(layer)
        return np.asarray(y)

    def serve(self) -> int:
        """There is no rank without attention."""
        raise AssertionError("every rank has tokens of its own")

    def end(self) -> None:
        """All ranks have agreed on it already."""

    def close(self) -> None:
        """Give its memory back."""
        if self._rebalancing is not None:
            self._rebalancing.close()
        self._ep.close()

    @property
    def bytes_moved(self) -> int:
        """Of rows that this rank's experts got from other ranks, and of their results."""
        return self._rows_from_others * self._row_bytes

    @property
    def loads(self) -> list[SlotLoad]:
        """Of the experts before they have moved, and after."""
        return self._local.loads

    @property
    def moved(self) -> Moved | None:
        """What the rebalancing did."""
        return None if self._rebalancing is None else self._rebalancing.moved
