"""Messages over torch.distributed with gloo, which goes through TCP."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import torch
import torch.distributed as dist

from parts.messages_work import Bytes, MessagesPart, Times
from parts.transport_gloo import Gloo


class Part(MessagesPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(Gloo(spec).rank, dist.barrier)

    def ping_pong(self, variant: str, data: Bytes, rounds: int) -> Times:
        """See messages_work.py."""
        tensor, other = torch.from_numpy(data), 1 - self.rank
        start = monotonic_ns()
        for _ in range(rounds):
            if self.rank == 0:
                dist.send(tensor, other)
            dist.recv(tensor, other)
            if self.rank == 1:
                dist.send(tensor, other)
        return start, monotonic_ns()

    def stream(self, variant: str, data: Bytes, window: int, rounds: int) -> Times:
        """See messages_work.py."""
        tensor, answer, other = torch.from_numpy(data), torch.zeros(1, dtype=torch.uint8), 1 - self.rank
        begin = dist.irecv if self.rank else dist.isend
        start = monotonic_ns()
        for _ in range(rounds):
            for request in [begin(tensor, other) for _ in range(window)]:
                request.wait()
            if self.rank:
                dist.send(answer, other)
            else:
                dist.recv(answer, other)
        return start, monotonic_ns()

    def close(self) -> None:
        """Leaves."""
        dist.destroy_process_group()
