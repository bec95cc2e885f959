"""All-to-all over torch.distributed with gloo."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import torch
import torch.distributed as dist

from parts.all_to_all_work import AllToAllPart
from parts.messages_work import Bytes, Times
from parts.transport_gloo import Gloo


class Part(AllToAllPart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        gloo = Gloo(spec)
        super().__init__(gloo.rank, gloo.size, gloo.barrier)

    def all_to_all(self, variant: str, sent: Bytes, received: Bytes, rounds: int) -> Times:
        """See all_to_all_work.py."""
        blocks, into = torch.from_numpy(sent), torch.from_numpy(received)
        start = monotonic_ns()
        for _ in range(rounds):
            dist.all_to_all_single(into, blocks)
        return start, monotonic_ns()

    def close(self) -> None:
        """Leaves."""
        dist.destroy_process_group()
