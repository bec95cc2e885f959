"""Calls a library's loops in C (native/loops.h), in a process where the library has been started."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

BUILT = Path(__file__).resolve().parents[2] / "build" / "bench"

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Span(ctypes.Structure):
    """Nanoseconds of CLOCK_MONOTONIC."""

    _fields_ = (("start", ctypes.c_int64), ("end", ctypes.c_int64))


def address(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    """Of its first element."""
    return ctypes.c_void_p(array.ctypes.data)


class Loops:
    """The loops of one library; each returns when the time began and ended."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(str(BUILT / f"{library}.so"))

    def open(self, rank: int, size: int, job: str) -> None:
        """Starts the library, where nothing else does."""
        if self._library.loops_open(rank, size, job.encode()):
            self._library.loops_error.restype = ctypes.c_char_p
            raise RuntimeError(self._library.loops_error().decode())

    def barrier(self) -> None:
        """Of a library that `open` has started."""
        if status := self._library.loops_barrier():
            raise RuntimeError(f"loops_barrier returned {status}")

    def close(self) -> None:
        """Ends a library that `open` has started."""
        self._library.loops_close()

    def memory(self, shape: tuple[int, ...]) -> Bytes:
        """An array in the library's own memory, see native/loops.h."""
        size = int(np.prod(shape))
        self._library.loops_memory.restype = ctypes.c_void_p
        if not (at := self._library.loops_memory(ctypes.c_size_t(size))):
            raise RuntimeError(f"loops_memory has no {size} bytes")
        return np.frombuffer((ctypes.c_uint8 * size).from_address(at), np.uint8).reshape(shape)

    def ping_pong(self, data: Bytes, rounds: int) -> tuple[int, int]:
        """See native/loops.h."""
        return self._call(
            "loops_ping_pong", address(data), ctypes.c_size_t(data.nbytes), ctypes.c_int64(rounds)
        )

    def stream(self, data: Bytes, window: int, rounds: int) -> tuple[int, int]:
        """See native/loops.h."""
        size, count = ctypes.c_size_t(data.nbytes), ctypes.c_int64(rounds)
        return self._call("loops_stream", address(data), size, ctypes.c_int(window), count)

    def all_to_all(self, sent: Bytes, received: Bytes, rounds: int) -> tuple[int, int]:
        """See native/loops.h. Both are (ranks, bytes of a block)."""
        size, count = ctypes.c_size_t(sent.shape[1]), ctypes.c_int64(rounds)
        return self._call("loops_all_to_all", address(sent), address(received), size, count)

    def _call(self, name: str, *arguments: Any) -> tuple[int, int]:
        span = Span()
        if status := getattr(self._library, name)(*arguments, ctypes.byref(span)):
            raise RuntimeError(f"{name} returned {status}")
        return span.start, span.end
