"""One rank at work: its own sequences, and the experts of all ranks through dispatch and combine.

Called by rank.py. Every step runs each sequence's next tokens (a piece of a prompt, or one new token) through
all layers together; a rank without tokens takes part until no rank has any. Not here: attention (llama.py),
expert arithmetic (experts.py), what becomes of the hidden states (the `on_step` given by rank.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from experts import MoeWeights, route, run_expert
from llama import Chunk, FeedForward, KvCache, Llama

if TYPE_CHECKING:
    import xccl

PHASES = ("attention", "routing", "dispatch", "experts", "combine", "output", "agree")


class PhaseClock:
    """Divides the time of a rank among phases: at every moment exactly one of them is running."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "agree"
        self._since = time.perf_counter()

    def switch(self, phase: str) -> None:
        """From now on it is this phase's time."""
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now


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


@dataclass
class Traffic:
    """What went through this rank's dispatches and combines."""

    load: np.ndarray  # rows that came, (layers, local experts)
    rows_sent: int = 0
    rows_kept: int = 0


@dataclass
class DistributedExperts:
    """The feed-forward function whose experts are spread over the ranks. One `ep` serves all layers."""

    ep: xccl.ExpertParallel
    weights: MoeWeights
    clock: PhaseClock
    broken_expert: tuple[int, int] | None = None
    traffic: Traffic = field(init=False)

    def __post_init__(self) -> None:
        local = list(self.ep.local_experts)
        self.traffic = Traffic(np.zeros((self.weights.layers, len(local)), np.int64))
        self._is_local = np.zeros(self.weights.experts, bool)
        self._is_local[local] = True

    def __call__(self, layer: int, x: np.ndarray) -> np.ndarray:
        self.clock.switch("routing")
        topk_idx, topk_weights = route(self.weights, layer, x, self.ep.topk)
        self._count(topk_idx)
        self.clock.switch("dispatch")
        d = self.ep.dispatch(x, topk_idx, topk_weights)
        self.clock.switch("experts")
        rows = self._run_local_experts(layer, d)
        self.clock.switch("combine")
        y = self.ep.combine(rows, d)
        d.release()
        self.clock.switch("attention")
        return np.asarray(y)

    def _run_local_experts(self, layer: int, d: xccl.Dispatched) -> np.ndarray:
        # Results written into this buffer are where other ranks pull them from: combine copies nothing first.
        out = d.output_buffer()
        self.traffic.load[layer] += d.counts
        start = 0
        for i, expert in enumerate(self.ep.local_experts):
            end = start + int(d.counts[i])
            if end > start:
                run_expert(self.weights, layer, expert, d.expert(i), out[start:end])
            if (layer, expert) == self.broken_expert:
                out[start:end] = 0
            start = end
        return out

    def _count(self, topk_idx: np.ndarray) -> None:
        kept = int(self._is_local[topk_idx].sum())
        self.traffic.rows_kept += kept
        self.traffic.rows_sent += topk_idx.size - kept


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
