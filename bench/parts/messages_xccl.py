"""XCCL's messages from Python. Variants: "private", arrays of numpy; "application", arrays of `comm.empty`, which
other ranks can read where they lie.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import numpy as np

import xccl
from parts.messages_work import Bytes, MessagesPart, Times

ANSWER = 1


class Part(MessagesPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._comm: Any = xccl.init(rank=spec["rank"], size=spec["size"], job=spec["job"], timeout=100)
        super().__init__(self._comm.rank, self._comm.barrier)

    def memory(self, variant: str, size: int) -> Bytes:
        """See messages_work.py."""
        if variant == "private":
            return super().memory(variant, size)
        found: Bytes = self._comm.empty(size, "uint8")
        return found

    def ping_pong(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        send, receive, other = self._comm.send, self._comm.recv, 1 - self.rank
        start = monotonic_ns()
        if self.rank == 0:
            for _ in range(rounds):
                send(data, other)
                receive(data, other)
        else:
            for _ in range(rounds):
                receive(data, other)
                send(data, other)
        return start, monotonic_ns()

    def stream(self, variant: str, data: Bytes, window: int, rounds: int) -> Times:
        """See messages_work.py."""
        begin = self._comm.irecv if self.rank else self._comm.isend
        other, answer = 1 - self.rank, np.zeros(1, np.uint8)
        start = monotonic_ns()
        for _ in range(rounds):
            for request in [begin(data, other) for _ in range(window)]:
                request.wait()
            if self.rank:
                self._comm.send(answer, other, ANSWER)
            else:
                self._comm.recv(answer, other, ANSWER)
        return start, monotonic_ns()

    def lend(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        send, view, other = self._comm.send, self._comm.recv_view, 1 - self.rank
        start = monotonic_ns()
        for _ in range(rounds):
            if self.rank == 0:
                send(data, other)
            with view(other):
                pass
            if self.rank == 1:
                send(data, other)
        return start, monotonic_ns()

    def borrow_once(self, data: Bytes) -> Bytes:
        """See messages_work.py."""
        if self.rank == 0:
            self._comm.send(data, 1)
            return data
        with self._comm.recv_view(0) as seen:
            return np.array(seen)

    def close(self) -> None:
        """Leaves the job."""
        self._comm.close()
