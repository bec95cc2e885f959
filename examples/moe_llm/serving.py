"""One rank at work: its own sequences, step by step through all layers.

Called by rank.py. Every step runs each sequence's next tokens (a piece of a prompt, or one new token) through
all layers together; a rank without tokens takes part until no rank has any. Not here: attention (llama.py),
where the experts are (place.py), what becomes of the hidden states (the `on_step` given by rank.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from clock import PhaseClock
from experts import MoeWeights, route
from llama import Chunk, FeedForward, KvCache, Llama

if TYPE_CHECKING:
    from place import Place

    import xccl


@dataclass
class LiveSequence:
    """A sequence on its rank. Tokens that are not in the cache yet are its work for the next steps."""

    id: int
    tokens: list[int]
    cache: KvCache
    finished: bool = False

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.cache.length


Work = list[tuple[LiveSequence, int]]  # which sequences advance in a step, and by how many tokens
OnStep = Callable[[Work, np.ndarray], None]


def plan_step(sequences: Sequence[LiveSequence], max_tokens: int) -> Work:
    """The next step: every sequence that is being written by one token, then prompts with what room is left."""
    work: Work = []
    for sequence in sorted((s for s in sequences if not s.finished), key=lambda s: s.pending > 1):
        count = min(sequence.pending, max_tokens)
        if count:
            work.append((sequence, count))
            max_tokens -= count
    return work


@dataclass(frozen=True)
class MoeLayer:
    """The feed-forward function: chooses experts here, and leaves the rest to where they are."""

    weights: MoeWeights
    topk: int
    place: Place
    clock: PhaseClock

    def __call__(self, layer: int, x: np.ndarray) -> np.ndarray:
        self.clock.switch("routing")
        topk_idx, topk_weights = route(self.weights, layer, x, self.topk)
        y = self.place(layer, x, topk_idx, topk_weights)
        self.clock.switch("attention")
        return y


@dataclass
class Steps:
    """How often this rank took part, with and without tokens of its own."""

    total: int = 0
    idle: int = 0
    tokens: int = 0


@dataclass
class Server:
    """Runs steps until no rank has work left."""

    comm: xccl.Communicator
    model: Llama
    feed_forward: FeedForward
    max_tokens: int
    clock: PhaseClock
    steps: Steps = field(default_factory=Steps)

    def run(self, sequences: Sequence[LiveSequence], on_step: OnStep) -> None:
        """Collective: every rank calls it with its own sequences, maybe none."""
        while True:
            work = plan_step(sequences, self.max_tokens)
            if not self._anybody_active(bool(work)):
                return
            self.step(work, on_step)

    def _anybody_active(self, active: bool) -> bool:
        self.clock.switch("agree")
        return bool(self.comm.all_gather(np.array([active], np.int64)).any())

    def step(self, work: Work, on_step: OnStep) -> None:
        """One pass through all layers, in which all ranks take part."""
        self.clock.switch("attention")
        hidden = self.model.forward([_chunk(sequence, count) for sequence, count in work], self.feed_forward)
        self.clock.switch("output")
        if work:
            on_step(work, hidden)
        self.steps.total += 1
        self.steps.idle += not work
        self.steps.tokens += len(hidden)


def _chunk(sequence: LiveSequence, count: int) -> Chunk:
    start = sequence.cache.length
    return Chunk(sequence.tokens[start : start + count], sequence.cache)
