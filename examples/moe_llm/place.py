"""Where the parts of the model live, seen by a rank: the seam between attention and experts.

A rank with attention calls a place like a function, (layer, x, topk_idx, topk_weights) -> y, for hidden states x of its
tokens, and `end` when there are no more; a rank without calls `serve`. Nothing else in the demo knows which form it is.
Called by rank.py. Not here: the forms themselves (colocated.py, disaggregated.py).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from clock import PhaseClock
from colocated import ColocatedExperts
from disaggregated import DisaggregatedPlace
from experts import MoeWeights
from job import Job, Moved, SlotLoad, Traffic

import xccl


class Place(Protocol):
    """One pass of a job over its texts."""

    token_ranks: xccl.Communicator | None  # the ranks with attention; None on a rank without

    def __call__(
        self, layer: int, x: np.ndarray, topk_idx: np.ndarray, topk_weights: np.ndarray
    ) -> np.ndarray: ...

    def serve(self) -> int:
        """What a rank without attention does, until the others end. Returns how many layers that were."""

    def end(self) -> None:
        """Of a rank with attention: there are no more tokens."""

    def close(self) -> None:
        """Give its memory back."""

    @property
    def bytes_moved(self) -> int:
        """Of rows between this rank and others."""

    @property
    def loads(self) -> list[SlotLoad]:
        """Rows of this rank's experts."""

    @property
    def traffic(self) -> Traffic | None:
        """Beside the cost model, where there is one."""

    @property
    def moved(self) -> Moved | None:
        """Experts that have changed ranks, where they do."""


def open_place(comm: xccl.Communicator, job: Job, moe: MoeWeights, topk: int, clock: PhaseClock) -> Place:
    """Collective over all ranks."""
    form = ColocatedExperts if job.form.attention is None else DisaggregatedPlace
    return form(comm, job, moe, topk, clock)
