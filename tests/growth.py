"""What a process has of the machine, and whether that has grown: for tests that do the same again and again."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Taken:
    """What one process has, at one moment."""

    pid: int
    memory: int  # bytes that are its own
    descriptors: int
    mappings: int

    @staticmethod
    def now() -> Taken:
        """By this process."""
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        memory = int(status["RssAnon"].split()[0]) * 1024
        mappings = len(Path("/proc/self/maps").read_text().splitlines())
        return Taken(os.getpid(), memory, len(os.listdir("/proc/self/fd")), mappings)


def grown(history: Sequence[Taken], memory: int) -> list[str]:
    """What has grown from the second quarter of a history to the last, by the median of each.

    The first quarter is for settling down. Of memory, growth up to `memory` bytes is none: the allocator keeps some.
    """
    quarter = len(history) // 4
    assert quarter >= 1, "a history of four moments at least"
    early, late = history[quarter : 2 * quarter], history[-quarter:]
    found = []
    for what, allowed in (("memory", memory), ("descriptors", 0), ("mappings", 8)):
        before, after = (int(statistics.median(getattr(one, what) for one in part)) for part in (early, late))
        if after > before + allowed:
            found.append(f"{what} grew from {before} to {after}")
    return found
