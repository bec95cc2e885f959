"""All-to-all over MPI. Variants: "c", by native/loops_mpi.c; "python", by mpi4py."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

from mpi4py import MPI

from parts.all_to_all_work import AllToAllPart
from parts.loops import Loops
from parts.messages_work import Bytes, Times


class Part(AllToAllPart):
    """See rank.py. Option "loops": the library of loops of this MPI."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._world = MPI.COMM_WORLD
        super().__init__(self._world.rank, self._world.size, self._world.Barrier)
        self._library: str = spec["options"]["loops"]

    def all_to_all(self, variant: str, sent: Bytes, received: Bytes, rounds: int) -> Times:
        """See all_to_all_work.py."""
        if variant == "c":
            return Loops(self._library).all_to_all(sent, received, rounds)
        size = sent.shape[1]
        blocks, into = [sent, size, MPI.BYTE], [received, size, MPI.BYTE]
        start = monotonic_ns()
        for _ in range(rounds):
            self._world.Alltoall(blocks, into)
        return start, monotonic_ns()
