"""XCCL's all-to-all from C, by native/loops_xccl.c.

Variants: "private" arrays, or what is sent in the application "area".
"""

from __future__ import annotations

from typing import Any

from parts.all_to_all_work import AllToAllPart, aligned
from parts.loops import Loops
from parts.messages_work import Bytes, Times


class Part(AllToAllPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._loops = Loops("loops_xccl")
        self._loops.open(spec["rank"], spec["size"], spec["job"])
        super().__init__(spec["rank"], spec["size"], self._loops.barrier)

    def memory(self, variant: str, shape: tuple[int, int]) -> Bytes:
        """See all_to_all_work.py."""
        return self._loops.memory(shape) if variant == "area" else aligned(shape)

    def all_to_all(self, variant: str, sent: Bytes, received: Bytes, rounds: int) -> Times:
        """See all_to_all_work.py."""
        return self._loops.all_to_all(sent, received, rounds)

    def close(self) -> None:
        """Leaves the job."""
        self._loops.close()
