"""The place where attention and experts are on different ranks: a2e, experts, e2a.

The contract is in docs/disaggregation.md. Made by place.py, which says what a place is. Not here: running the experts
(local_experts.py).
"""

from __future__ import annotations

import numpy as np
from clock import PhaseClock
from experts import MoeWeights
from job import Job, SlotLoad, Traffic
from local_experts import LocalExperts

import xccl


class DisaggregatedPlace:
    """One DisaggregatedExperts serves all layers: the layer is the tag that experts see."""

    moved = None

    def __init__(
        self, comm: xccl.Communicator, job: Job, moe: MoeWeights, topk: int, clock: PhaseClock
    ) -> None:
        assert job.form.attention is not None
        self._de = xccl.DisaggregatedExperts(
            comm,
            job.form.attention,
            num_experts=moe.experts,
            hidden=moe.hidden,
            max_tokens=job.max_tokens,
            topk=topk,
            dtype="float32",
            dispatch_quant=job.quant,
            combine_quant=job.quant,
            routing=job.form.routing,
            micro_batches=1,  # a layer needs the sums of the one before
        )
        self.token_ranks = comm.split(-1 if self._de.is_expert else 0)
        self._local = LocalExperts(moe, self._de.local_experts, job.broken_expert)
        self._clock = clock
        self._layers = 0

    def __call__(
        self, layer: int, x: np.ndarray, topk_idx: np.ndarray, topk_weights: np.ndarray
    ) -> np.ndarray:
        self._clock.switch("dispatch")
        self._de.a2e(x, topk_idx, topk_weights, tag=layer)
        self._clock.switch("combine")
        self._layers += 1
        return np.asarray(self._de.e2a())

    def serve(self) -> int:
        """Whatever layer comes; waiting for it counts as dispatch."""
        self._clock.switch("dispatch")
        self._layers = self._de.serve(self._compute)
        return self._layers

    def _compute(self, batch: xccl.disaggregated.Batch) -> np.ndarray:
        self._clock.switch("experts")
        rows = self._local(batch.tag, batch)
        self._clock.switch("dispatch")
        return rows

    def end(self) -> None:
        """The experts' serve returns."""
        self._clock.switch("agree")
        self._de.end()

    def close(self) -> None:
        """Give its memory back."""
        self._de.close()
        if self.token_ranks is not None:
            self.token_ranks.close()

    @property
    def bytes_moved(self) -> int:
        """As XCCL counts them: a trampoline's messages and sums among them."""
        return self._de.counters().bytes

    @property
    def loads(self) -> list[SlotLoad]:
        """None on a rank with attention."""
        return self._local.loads if self._de.is_expert else []

    @property
    def traffic(self) -> Traffic:
        """What was counted beside what the cost model says."""
        de = self._de
        if de.is_expert:
            model = de.cost.expert(de.routing, de.comm.rank - de.attention)
        else:
            model = de.cost.attention(de.routing)
        counted = de.counters()
        return Traffic(
            counted.records, counted.fan_out, self._layers * model.records, model.fan_out, de.routing
        )
