"""Messages over MPI. Variants: "c", by native/loops_mpi.c; "python", by mpi4py's calls for buffers."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

from mpi4py import MPI

from parts.loops import Loops
from parts.messages_work import Bytes, MessagesPart, Times

DATA, ANSWER = 1, 2


class Part(MessagesPart):
    """See rank.py. Option "loops": the library of loops of this MPI."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._world = MPI.COMM_WORLD
        super().__init__(self._world.rank, self._world.Barrier)
        self._library: str = spec["options"]["loops"]
        self._loops: Loops | None = None

    def _in_c(self) -> Loops:
        self._loops = self._loops or Loops(self._library)
        return self._loops

    def ping_pong(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        if variant == "c":
            return self._in_c().ping_pong(data, rounds)
        send, receive, other = self._world.Send, self._world.Recv, 1 - self.rank
        message = [data, MPI.BYTE]
        start = monotonic_ns()
        if self.rank == 0:
            for _ in range(rounds):
                send(message, other, DATA)
                receive(message, other, DATA)
        else:
            for _ in range(rounds):
                receive(message, other, DATA)
                send(message, other, DATA)
        return start, monotonic_ns()

    def stream(self, variant: str, data: Bytes, window: int, rounds: int) -> Times:
        """See messages_work.py."""
        if variant == "c":
            return self._in_c().stream(data, window, rounds)
        begin = self._world.Irecv if self.rank else self._world.Isend
        other, message, answer = 1 - self.rank, [data, MPI.BYTE], [bytearray(1), MPI.BYTE]
        wait = MPI.Request.Waitall
        start = monotonic_ns()
        for _ in range(rounds):
            wait([begin(message, other, DATA) for _ in range(window)])
            if self.rank:
                self._world.Send(answer, other, ANSWER)
            else:
                self._world.Recv(answer, other, ANSWER)
        return start, monotonic_ns()
