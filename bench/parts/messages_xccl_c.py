"""XCCL's messages from C, by native/loops_xccl.c."""

from __future__ import annotations

from typing import Any

from parts.loops import Loops
from parts.messages_work import Bytes, MessagesPart, Times


class Part(MessagesPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._loops = Loops("loops_xccl")
        self._loops.open(spec["rank"], spec["size"], spec["job"])
        super().__init__(spec["rank"], self._loops.barrier)

    def ping_pong(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        return self._loops.ping_pong(data, rounds)

    def stream(self, variant: str, data: Bytes, window: int, rounds: int) -> Times:
        """See messages_work.py."""
        return self._loops.stream(data, window, rounds)

    def close(self) -> None:
        """Leaves the job."""
        self._loops.close()
