"""The experts that one rank hosts: their weights, slot by slot, and running them on the rows that came.

Called by colocated.py and disaggregated.py. Not here: how rows come and go; the arithmetic of one expert (experts.py).
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
        self,
        weights: MoeWeights,
        slots: list[int],
        broken_expert: tuple[int, int] | None = None,
        movable: bool = False,
    ) -> None:
        self._broken_expert = broken_expert
        self._layers = weights.layers
        self.loads: list[SlotLoad] = []
        # By slot, then by layer. Mapped, so that all ranks share one copy; but what moves has to be this rank's own.
        copied = _own if movable else _mapped
        self.weights = [copied(array, slots) for array in (weights.gate_up, weights.down)]
        self.hosts(slots)

    def hosts(self, slots: list[int]) -> None:
        """From now on these experts' weights are in the slots. Rows are counted anew."""
        self.loads.append(SlotLoad(slots, [[0] * len(slots) for _ in range(self._layers)]))

    @property
    def slots(self) -> list[int]:
        """The expert in each slot."""
        return self.loads[-1].experts

    def __call__(self, layer: int, received: xccl.Dispatched | xccl.disaggregated.Batch) -> np.ndarray:
        """The results for all rows, expert by expert."""
        # Results written into this buffer are where other ranks pull them from: combine copies nothing first.
        out = received.output_buffer()
        counts = received.counts.tolist()
        gate_up, down = self.weights
        for slot, expert in enumerate(self.slots):
            self.loads[-1].rows[layer][slot] += counts[slot]
            if counts[slot] == 0:
                continue
            where = received.rows_of(slot)
            scales = None if received.scales is None else received.scales[where]
            rows = dequantised(received.expert(slot), scales)
            run_expert(gate_up[slot][layer], down[slot][layer], rows, out[where])
            if (layer, expert) == self._broken_expert:
                out[where] = 0
        return out


def _mapped(array: np.ndarray, slots: list[int]) -> list[np.ndarray]:
    return [array[:, expert] for expert in slots]


def _own(array: np.ndarray, slots: list[int]) -> np.ndarray:
    """One array, an empty slot (-1) zero."""
    own = np.zeros((len(slots), len(array), *array.shape[2:]), array.dtype)
    for slot, expert in enumerate(slots):
        if expert >= 0:
            own[slot] = array[:, expert]
    return own
