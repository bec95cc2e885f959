"""The work of all-to-all, the same for every library: a block of bytes from every rank to every rank.

After the clock has stopped, every block is compared with what its sender had for this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parts.messages_work import Bytes, Times, pattern

METRIC = "all_to_all"
LINE = 64


class AllToAllPart:
    """The part of rank.py for a library with an all-to-all. A library says how to do it."""

    def __init__(self, rank: int, size: int, barrier: Callable[[], object]) -> None:
        self.rank, self.size = rank, size
        self.barrier = barrier

    def all_to_all(self, variant: str, sent: Bytes, received: Bytes, rounds: int) -> Times:
        """When it began and ended."""
        raise NotImplementedError

    def memory(self, variant: str, shape: tuple[int, int]) -> Bytes:
        """Where the blocks to send lie."""
        return aligned(shape)

    def take(self, case: dict[str, Any]) -> None:
        """Another size."""
        self._shape = (self.size, case["bytes"])
        self._received = aligned(self._shape)
        self._sent: dict[str, Bytes] = {}

    def run(self, variant: str, iterations: int, seed: int) -> dict[str, list[tuple[int, int, int]]]:
        """One sample."""
        if variant not in self._sent:
            self._sent[variant] = self.memory(variant, self._shape)
        sent = self._sent[variant]
        self._seed = seed
        for other in range(self.size):
            sent[other] = self._block(self.rank, other)
        self._received.fill(0)
        self.barrier()
        times = self.all_to_all(variant, sent, self._received, iterations)
        return {METRIC: [(*times, iterations)]}

    def _block(self, source: int, target: int) -> Bytes:
        return pattern(self._seed + 17 * source + target, self._shape[1])

    def check(self) -> str | None:
        """Of the last sample."""
        bad = [
            source
            for source in range(self.size)
            if not np.array_equal(self._received[source], self._block(source, self.rank))
        ]
        return f"the blocks of ranks {bad} are wrong" if bad else None

    def close(self) -> None:
        """Nothing to do."""


def aligned(shape: tuple[int, int]) -> Bytes:
    """Bytes that begin at a cache line, touched."""
    size = shape[0] * shape[1]
    room = np.zeros(size + LINE, np.uint8)
    room.fill(1)
    first = -room.ctypes.data % LINE
    return room[first : first + size].reshape(shape)
