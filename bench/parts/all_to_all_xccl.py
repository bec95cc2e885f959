"""XCCL's all-to-all from Python.

Variants: "private" arrays, or what is sent in the application "area".
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import xccl
from parts.all_to_all_work import AllToAllPart, aligned
from parts.messages_work import Bytes, Times


class Part(AllToAllPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._comm: Any = xccl.init(rank=spec["rank"], size=spec["size"], job=spec["job"], timeout=100)
        super().__init__(self._comm.rank, self._comm.size, self._comm.barrier)

    def memory(self, variant: str, shape: tuple[int, int]) -> Bytes:
        """See all_to_all_work.py."""
        return aligned(shape) if variant == "private" else self._comm.empty(shape, "uint8")

    def all_to_all(self, variant: str, sent: Bytes, received: Bytes, rounds: int) -> Times:
        """See all_to_all_work.py."""
        all_to_all = self._comm.all_to_all
        start = monotonic_ns()
        for _ in range(rounds):
            all_to_all(sent, out=received)
        return start, monotonic_ns()

    def close(self) -> None:
        """Leaves the job."""
        self._comm.close()
