"""The floors of messages: one copy out of the sender's memory and one flag; borrowed, only the flag."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from parts.floor import LINES_BYTES, METHODS, Floor
from parts.messages_work import Bytes, MessagesPart, Times
from parts.shared import Shared

RIDES = 8  # bytes that fit beside a flag


class Part(MessagesPart):
    """See rank.py. Variants: how to copy."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec["rank"], lambda: self._floor.meet())
        self._spec = spec

    def take(self, case: dict[str, Any]) -> None:
        """See messages_work.py. All variants use the same memory."""
        if getattr(self, "_room", 0) != case["room"]:
            self._shared = Shared(self._spec["memory"])
            meeting, self._lines, *places = self._shared.plan(64, LINES_BYTES, *[case["room"]] * 2)
            self._places = np.array(places, np.int64)
            self._shared.touch(places[self.rank], case["room"])
            self._floor = Floor(self._shared, meeting, self._spec)
        super().take(case)

    def memory(self, variant: str, size: int) -> Bytes:
        """See messages_work.py."""
        return self._shared.array(int(self._places[self.rank]), (size,), np.uint8)

    def ping_pong(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        return self._there_and_back(data.nbytes, METHODS[variant], rounds)

    def _there_and_back(self, size: int, method: int, rounds: int) -> Times:
        numbers = map(ctypes.c_int64, (size, rounds, method))
        return self._floor.call("floor_ping_pong", ctypes.c_int64(self._lines), self._places, *numbers)

    def stream(self, variant: str, data: Bytes, window: int, rounds: int) -> Times:
        """See messages_work.py."""
        numbers = map(ctypes.c_int64, (data.nbytes, window, rounds, METHODS[variant]))
        return self._floor.call("floor_stream", ctypes.c_int64(self._lines), self._places, *numbers)

    def lend(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        return self._there_and_back(RIDES, METHODS["memcpy"], rounds)

    def borrow_once(self, data: Bytes) -> Bytes:
        """See messages_work.py."""
        self._floor.meet()
        return self._shared.array(int(self._places[0]), (data.nbytes,), np.uint8)
