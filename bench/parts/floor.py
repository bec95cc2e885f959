"""Calls the floors in C (native/floor_*.c) on memory that all ranks share."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from parts.loops import BUILT, Span, address
from parts.shared import Shared

METHODS = {"memcpy": 0, "non-temporal": 1}
LINES_BYTES = 128 * 64  # struct lines


class _Place(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("meeting", ctypes.c_int64),
        ("rank", ctypes.c_int),
        ("size", ctypes.c_int),
        ("yields", ctypes.c_int),
    )


class Floor:
    """The library of floors and the place where its ranks meet."""

    def __init__(self, shared: Shared, meeting: int, spec: dict[str, Any]) -> None:
        self._library = ctypes.CDLL(str(BUILT / "floor.so"))
        crowded = spec["size"] > spec["cores"]
        self._place = _Place(shared.address, meeting, spec["rank"], spec["size"], crowded)

    def call(self, function: str, *arguments: Any) -> tuple[int, int]:
        """Calls it with the place, the arguments (arrays as addresses) and a span: when it began and ended."""
        span = Span()
        given = [address(one) if isinstance(one, np.ndarray) else one for one in arguments]
        if getattr(self._library, function)(ctypes.byref(self._place), *given, ctypes.byref(span)):
            raise RuntimeError(f"{function}: this processor has no such way to copy")
        return span.start, span.end

    def meet(self) -> None:
        """A barrier."""
        self._library.floor_meet(ctypes.byref(self._place))
