"""The experts that one rank hosts: their weights, slot by slot, and running them on the rows that came.

Called by colocated.py. Not here: how rows come and go; the arithmetic of one expert (experts.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from experts import MoeWeights, run_expert
from job import SlotLoad
from quantised import dequantised

if TYPE_CHECKING:
    import xccl


class LocalExperts:
    """Runs the experts in this rank's slots, and counts their rows."""

    def __init__(
        self, weights: MoeWeights, slots: list[int], broken_expert: tuple[int, int] | None = None
    ) -> None:
        self._broken_expert = broken_expert
        # By slot, then by layer. Mapped: all ranks share one copy.
        self.gate_up = [weights.gate_up[:, expert] for expert in slots]
        self.down = [weights.down[:, expert] for expert in slots]
        self.loads = [SlotLoad(slots, [[0] * len(slots) for _ in range(weights.layers)])]

    @property
    def slots(self) -> list[int]:
        """The expert in each slot."""
        return self.loads[-1].experts

    def __call__(self, layer: int, received: xccl.Dispatched) -> np.ndarray:
        """The results for all rows, expert by expert."""
        # Results written into this buffer are where other ranks pull them from: combine copies nothing first.
        out = received.output_buffer()
        counts = received.counts.tolist()
        for slot, expert in enumerate(self.slots):
            self.loads[-1].rows[layer][slot] += counts[slot]
            if counts[slot] == 0:
                continue
            where = received.rows_of(slot)
            scales = None if received.scales is None else received.scales[where]
            rows = dequantised(received.expert(slot), scales)
            run_expert(self.gate_up[slot][layer], self.down[slot][layer], rows, out[where])
            if (layer, expert) == self._broken_expert:
                out[where] = 0
        return out
