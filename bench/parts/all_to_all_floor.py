"""The floor of all-to-all: every rank copies its blocks from where they lie, once it has seen a flag of each other."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from parts.all_to_all_work import AllToAllPart
from parts.floor import LINES_BYTES, METHODS, Floor
from parts.messages_work import Bytes, Times
from parts.shared import Shared


class Part(AllToAllPart):
    """See rank.py. Variants: how to copy."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec["rank"], spec["size"], lambda: self._floor.meet())
        self._spec = spec

    def take(self, case: dict[str, Any]) -> None:
        """See all_to_all_work.py."""
        super().take(case)
        room = self.size * case["bytes"]
        self._shared = Shared(self._spec["memory"])
        meeting, self._lines, *places = self._shared.plan(64, LINES_BYTES, *[room] * self.size)
        self._places = np.array(places, np.int64)
        self._shared.touch(places[self.rank], room)
        self._floor = Floor(self._shared, meeting, self._spec)

    def memory(self, variant: str, shape: tuple[int, int]) -> Bytes:
        """See all_to_all_work.py."""
        return self._shared.array(int(self._places[self.rank]), shape, np.uint8)

    def all_to_all(self, variant: str, sent: Bytes, received: Bytes, rounds: int) -> Times:
        """See all_to_all_work.py."""
        numbers = map(ctypes.c_int64, (sent.shape[1], rounds, METHODS[variant]))
        return self._floor.call(
            "floor_all_to_all", ctypes.c_int64(self._lines), self._places, received, *numbers
        )
