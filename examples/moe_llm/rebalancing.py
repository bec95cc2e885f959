"""Moving hot experts to other ranks while the model is running: count, decide, copy, switch (docs/placement.md).

Called by colocated.py after every layer. Not here: deciding and copying themselves, which are xccl.eplb.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from job import Moved
from local_experts import LocalExperts

import xccl

FREE_SLOTS = 1  # on each rank, for replicas
PIECE = 256 << 10  # bytes that a rank sends, and receives, between two layers at most
STEPS_COUNTED = 8  # before deciding
BUDGET = 2  # one expert in so many may be brought to another rank


def blocks_with_room(experts: int, ranks: int) -> list[list[int]]:
    """The placement to begin with: contiguous blocks and free slots."""
    return [[*block.tolist(), *[-1] * FREE_SLOTS] for block in np.array_split(np.arange(experts), ranks)]


class Rebalancing:
    """All ranks do the same at the same layer, because all of them run every layer of every step."""

    def __init__(self, ep: xccl.ExpertParallel, local: LocalExperts, layers: int) -> None:
        self._ep = ep
        self._local = local
        self._load = np.zeros((layers, ep.num_experts), np.int64)
        self._aside = ep.comm.split(0)  # for the weights; dispatch has lines of its own
        self._layers_done = 0
        self._migration: xccl.eplb.Migration | None = None
        self.moved: Moved | None = None

    def after_layer(self, layer: int) -> None:
        """Decides once, then carries one piece, until the experts have moved. Never waits for other ranks' pieces."""
        self._layers_done += 1
        if self.moved is None:
            self._load[layer] += self._ep.expert_load(reset=True)
        if self._layers_done == STEPS_COUNTED * len(self._load):
            self._decide()
        elif self._migration is not None and self._migration.step():
            self._switch()

    def _decide(self) -> None:
        """Every rank by itself, from the same load: by layer, since in each of them all wait for its hottest rank."""
        load = self._ep.comm.all_reduce(self._load)
        before = self._ep.placement
        self._plan = xccl.eplb.rebalance(load, current=before, budget=self._ep.num_experts // BUDGET)
        weights = self._local.weights
        self._migration = xccl.eplb.migrate(self._aside, weights, self._plan.moves, step_bytes=PIECE)
        expert_bytes = sum(array[0].nbytes for array in weights)
        moves = len(self._plan.moves)
        self.moved = Moved(moves, moves * expert_bytes, self._step, None, before, self._plan.placement)

    def _switch(self) -> None:
        self._migration.install()
        self._migration = None
        self._ep.set_placement(self._plan.placement)
        self._local.hosts(self._plan.placement[self._ep.comm.rank])
        self.moved = replace(self.moved, ready=self._step)

    @property
    def _step(self) -> int:
        """The number of the present one."""
        return -(-self._layers_done // len(self._load))

    def close(self) -> None:
        """Also in the middle of a copy, which is then dropped."""
        self._aside.close()
