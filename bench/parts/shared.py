"""Memory that all ranks of a floor share, cut into pieces, on huge pages where the kernel gives them.

The driver made the memory file and passed it on; it has no name, so nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from typing import Any

import numpy as np

HUGE = 2 << 20
MADV_COLLAPSE = 25


class Shared:
    """Pieces are taken in the same order on all ranks, so that each is at the same offset everywhere."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._size = 0
        self._map: mmap.mmap | None = None

    def plan(self, *sizes: int) -> list[int]:
        """Offsets of as many pieces of these sizes, each on huge pages of its own; the file is made to hold them."""
        offsets, end = [], 0
        for size in sizes:
            offsets.append(end)
            end += -(-size // HUGE) * HUGE
        os.ftruncate(self._file, end)  # all ranks say the same
        reserved = mmap.mmap(self._file, end)
        self._map, self._size = reserved, end
        return offsets

    @property
    def address(self) -> int:
        """Where the memory begins here."""
        assert self._map is not None
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """A piece as an array."""
        assert self._map is not None
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def touch(self, offset: int, size: int) -> None:
        """Takes the memory of a piece now, best on huge pages: this rank owns it."""
        assert self._map is not None
        end = offset + -(-size // HUGE) * HUGE
        self.array(offset, (end - offset,), np.uint8)[:: mmap.PAGESIZE] = 0
        with contextlib.suppress(OSError):  # best effort, as in XCCL
            self._map.madvise(MADV_COLLAPSE, offset, end - offset)
