"""The work of dispatch and combine, the same for every library: tokens, fresh routing, and what must come out.

bfloat16 is held as its bits (uint16), since not every environment has a dtype for it. Experts leave their rows as they
are and the weights of a token add up to 1, all values being such that no sum is rounded: combine must return x, bit
for bit, whatever the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Protocol

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Spans = dict[str, list[tuple[int, int, int]]]  #: by metric: start, end, how many

# Of eight slots; multiples of 1/16, so that a sum of them times a small whole number fits bfloat16's eight bits.
WEIGHTS = (4, 4, 2, 2, 1, 1, 1, 1)


class Work:
    """One rank's tokens, and where everybody's go in each iteration."""

    def __init__(self, rank: int, size: int, tokens: int, hidden: int, experts: int, topk: int) -> None:
        self.rank, self.size = rank, size
        self.tokens, self.hidden, self.experts, self.topk = tokens, hidden, experts, topk
        random = np.random.default_rng((11, rank))
        self.x = bfloat16_bits(random.integers(-9, 10, (tokens, hidden), np.int8).astype(np.float32))
        weights = np.resize(np.array(WEIGHTS, np.float32), topk)
        self.weights = np.tile(weights / weights.sum(), (tokens, 1))
        self._bases = [self._base(rank) for rank in range(size)]

    def _base(self, rank: int) -> Ints:
        scores = np.random.default_rng((12, rank)).random((self.tokens, self.experts), np.float32)
        return np.argpartition(scores, self.topk, axis=1)[:, : self.topk].astype(np.int64)

    def routing(self, seed: int, rank: int) -> Ints:
        """(tokens, topk), new in every iteration: the experts are renamed and the tokens change places."""
        random = np.random.default_rng((seed, rank))
        renamed = random.permutation(self.experts)[self._bases[rank]]
        return np.ascontiguousarray(renamed[random.permutation(self.tokens)])

    def rows_here(self, seed: int) -> int:
        """How many rows dispatch must bring to this rank."""
        local = self.experts // self.size
        everybody = (self.routing(seed, rank) for rank in range(self.size))
        return sum(int(np.count_nonzero(one // local == self.rank)) for one in everybody)

    def wrong(self, y: np.ndarray[Any, Any]) -> str | None:
        """What is wrong with combine's result, given as bits."""
        if y.shape != self.x.shape:
            return f"combine returned the shape {y.shape} instead of {self.x.shape}"
        # Rows are compared as numbers: -0 is as good as 0.
        bad = np.flatnonzero(((y != self.x) & ((y | self.x) & 0x7FFF != 0)).any(axis=1))
        return (
            f"combine: {len(bad)} of {self.tokens} rows differ, the first is {bad[0]}" if len(bad) else None
        )


def bfloat16_bits(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Of values that bfloat16 holds exactly."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


class Job(Protocol):
    """What a library does in one iteration."""

    work: Work

    def barrier(self) -> None:
        """All ranks."""

    def prepare(self, seed: int, variant: str) -> None:
        """Before the clock starts: writes the tokens anew, and has the iteration's routing as the library wants it."""

    def dispatch(self) -> None:
        """Timed."""

    def combine(self) -> None:
        """Timed; on the rows as dispatch left them."""

    def finish(self) -> None:
        """After the clock has stopped."""

    def result(self) -> np.ndarray[Any, Any]:
        """Bits of what the last combine returned."""

    def rows(self) -> int:
        """How many the last dispatch brought here."""

    def close(self) -> None:
        """Gives the memory back."""


class MoePart:
    """The part of rank.py for any Job: dispatch and combine in turn, each timed from its own barrier."""

    def __init__(self, rank: int, size: int, make: Callable[[Work], Job]) -> None:
        self.rank, self._size, self._make = rank, size, make
        self._job: Job | None = None

    def take(self, case: dict[str, int]) -> None:
        """Another shape."""
        MoePart.close(self)  # not the library's own close, which leaves the job
        self._job = self._make(Work(self.rank, self._size, **case))

    def run(self, variant: str, iterations: int, seed: int) -> Spans:
        """One sample."""
        job = self._job
        assert job is not None
        dispatches, combines = [], []
        for iteration in range(iterations):
            self._seed = seed + iteration
            job.prepare(self._seed, variant)
            job.barrier()
            start = monotonic_ns()
            job.dispatch()
            dispatches.append((start, monotonic_ns(), 1))
            job.barrier()
            start = monotonic_ns()
            job.combine()
            combines.append((start, monotonic_ns(), 1))
            job.finish()
        return {"dispatch": dispatches, "combine": combines}

    def check(self) -> str | None:
        """Of the last iteration."""
        job = self._job
        assert job is not None
        expected = job.work.rows_here(self._seed)
        if job.rows() != expected:
            return f"dispatch brought {job.rows()} rows instead of {expected}"
        return job.work.wrong(job.result())

    def close(self) -> None:
        """Gives the memory back."""
        if self._job is not None:
            self._job.close()
        self._job = None
