"""The work of point-to-point benchmarks between two ranks, the same for every library.

"latency": rank 0 sends an array, rank 1 receives it and sends the same array back, so that every message is one whose
bytes its sender has just written. "stream": rank 0 sends a window of messages without waiting for each, rank 1 answers
when it has them all. "borrowed": as latency, but the receiver only looks at the bytes where they lie, and each rank
sends an array of its own. After the clock has stopped, what arrived is compared with what was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Times = tuple[int, int]

METRIC = {"latency": "half round trip", "borrowed": "half round trip", "stream": "message"}
PERIOD = 251


def pattern(seed: int, size: int) -> Bytes:
    """Bytes that differ from one sample to the next, and at each place from those at most others."""
    return np.resize(((np.arange(PERIOD) * 7 + seed * 13 + 1) % PERIOD).astype(np.uint8), size)


class MessagesPart:
    """The part of rank.py for a library with messages. A library says how to do the three things."""

    def __init__(self, rank: int, barrier: Callable[[], object]) -> None:
        self.rank = rank
        self.barrier = barrier

    def ping_pong(self, variant: str, data: Bytes, rounds: int) -> Times:
        """When it began and ended."""
        raise NotImplementedError

    def stream(self, variant: str, data: Bytes, window: int, rounds: int) -> Times:
        """When it began and ended."""
        raise NotImplementedError

    def lend(self, variant: str, data: Bytes, rounds: int) -> Times:
        """When it began and ended."""
        raise NotImplementedError

    def borrow_once(self, data: Bytes) -> Bytes:
        """Once more: rank 0 lends its data. On rank 1, a copy of what it saw; on rank 0, the data."""
        raise NotImplementedError

    def memory(self, variant: str, size: int) -> Bytes:
        """Where the array of this variant lies."""
        return np.zeros(size, np.uint8)

    def take(self, case: dict[str, Any]) -> None:
        """Another size. Arrays are slices of one that all sizes share, large enough for huge pages."""
        if getattr(self, "_room", 0) != case["room"]:
            self._room, self._arrays = case["room"], dict[str, Bytes]()
        self._what, self._size, self._window = case["what"], case["bytes"], case.get("window", 1)

    def run(self, variant: str, iterations: int, seed: int) -> dict[str, list[tuple[int, int, int]]]:
        """One sample."""
        if variant not in self._arrays:
            self._arrays[variant] = self.memory(variant, self._room)
            self._arrays[variant].fill(1)
        self._data = data = self._arrays[variant][: self._size]
        self._expected = pattern(seed, self._size)
        if self.rank == 0:
            np.copyto(data, self._expected)
        elif self._what != "borrowed":
            data.fill(0)
        self.barrier()
        if self._what == "latency":
            count, times = 2 * iterations, self.ping_pong(variant, data, iterations)
        elif self._what == "stream":
            count, times = self._window * iterations, self.stream(variant, data, self._window, iterations)
        else:
            count, times = 2 * iterations, self.lend(variant, data, iterations)
            self._data = self.borrow_once(data)
        return {METRIC[self._what]: [(*times, count)] if self.rank == 0 else []}

    def check(self) -> str | None:
        """Of the last sample."""
        bad = np.flatnonzero(self._data != self._expected)
        return f"{len(bad)} of {self._size} bytes differ, the first is {bad[0]}" if len(bad) else None

    def close(self) -> None:
        """Nothing to do."""
