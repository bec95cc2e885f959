"""What a rank of `python -m xccl bench` does. Used by xccl/cli/bench.py, which compares what the ranks tell.

Times are spans (start, end, count) of CLOCK_MONOTONIC in ns, which all processes share. How long to go on is decided
by rank 0 alone, so that all do as many rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from typing import Any

import ml_dtypes
import numpy as np

Span = tuple[int, int, int]

LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Shape:
    """Of dispatch and combine."""

    tokens: int
    hidden: int
    experts: int
    topk: int


def timed(call: Callable[[], Any], count: int = 1) -> Span:
    """One span, of `count` calls."""
    start = monotonic_ns()
    for _ in range(count):
        call()
    return start, monotonic_ns(), count


def rounds(comm: Any, seconds: float, one: Callable[[int], None]) -> None:
    """Calls `one` with the number of the round until the time is over on rank 0; the first, which warms up, is -1."""
    one(-1)
    deadline = monotonic() + seconds
    number = 0
    while comm.all_gather(np.array([number < LEAST_ROUNDS or monotonic() < deadline]))[0, 0]:
        one(number)
        number += 1


def barrier(comm: Any, seconds: float) -> list[Span]:
    """A hundred barriers a round."""
    spans: list[Span] = []

    def one(number: int) -> None:
        span = timed(comm.barrier, 100)
        if number >= 0:
            spans.append(span)

    rounds(comm, seconds, one)
    return spans


def message(comm: Any, size: int, seconds: float) -> dict[str, list[Span]]:
    """Rank 0 sends an array, rank 1 receives it and sends it back."""
    data, other = np.zeros(size, np.uint8), 1 - comm.rank
    copied = np.empty_like(data)
    many = max(1, min(1000, (1 << 22) // size))
    told: dict[str, list[Span]] = {"messages": [], "copies": []}

    def there_and_back() -> None:
        if comm.rank == 0:
            comm.send(data, other)
        comm.recv(data, other)
        if comm.rank == 1:
            comm.send(data, other)

    def one(number: int) -> None:
        if comm.rank == 0:
            data.fill(number % 251)
        comm.barrier()
        start, end, _ = timed(there_and_back, many)
        if not (data == number % 251).all():
            raise RuntimeError(f"a message of {size} bytes arrived with other bytes")
        comm.barrier()
        copy = timed(lambda: np.copyto(copied, data), many)
        if number >= 0:
            told["messages"].append((start, end, 2 * many))
            told["copies"].append(copy)

    rounds(comm, seconds, one)
    return told


def moe(comm: Any, shape: Shape, seconds: float) -> dict[str, list[Span]]:
    """dispatch, combine and a copy of as many bytes as dispatch brings, in turn; fresh routing in every round."""
    import xccl

    random = np.random.default_rng(comm.rank)
    shape_of_x = (shape.tokens, shape.hidden)
    x = random.integers(-9, 10, shape_of_x, np.int8).astype(ml_dtypes.bfloat16)
    scores = random.random((shape.tokens, shape.experts), np.float32)
    base = np.argpartition(scores, shape.topk - 1, axis=1)[:, : shape.topk].astype(np.int64)
    weights = np.tile(halves(shape.topk), (shape.tokens, 1))
    y = np.empty_like(x)
    copy = Copy(x.nbytes * shape.topk)
    told: dict[str, list[Span]] = {"dispatch": [], "combine": [], "copy": []}
    ep = xccl.ExpertParallel(comm, shape.experts, shape.hidden, shape.tokens, shape.topk)

    def one(number: int) -> None:
        routing = random.permutation(shape.experts)[base]
        tokens = ep.input_buffer(shape.tokens)
        np.copyto(bits(tokens), bits(x))
        comm.barrier()
        start = monotonic_ns()
        d = ep.dispatch(tokens, routing, weights)
        dispatched = (start, monotonic_ns(), 1)
        comm.barrier()
        combined = timed(lambda: ep.combine(d.x, d, out=y))
        d.release()
        comm.barrier()
        copied = timed(copy)
        if not np.array_equal(bits(y), bits(x)):
            raise RuntimeError("combine did not return the tokens")
        if number >= 0:
            for what, span in zip(told, (dispatched, combined, copied), strict=True):
                told[what].append(span)

    rounds(comm, seconds, one)
    ep.close()
    return told


def halves(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """1/2, 1/4, ... that add up to 1: weights with which the sum of equal rows is the row itself, bit for bit."""
    weights = 0.5 ** np.arange(1, count + 1, dtype=np.float32)
    weights[-1] *= 2
    return weights


def bits(array: Any) -> Any:
    """numpy copies and compares an array of bfloat16 element by element, its bits at full speed."""
    return array.view(np.uint16)


class Copy:
    """Copies that many bytes when called, over and over through no more memory than no cache holds."""

    MOST = 128 << 20

    def __init__(self, size: int) -> None:
        self._times, rest = divmod(size, self.MOST)
        self._rest = rest
        self._source = np.ones(min(size, self.MOST), np.uint8)
        self._target = np.zeros_like(self._source)

    def __call__(self) -> None:
        for _ in range(self._times):
            np.copyto(self._target, self._source)
        np.copyto(self._target[: self._rest], self._source[: self._rest])
