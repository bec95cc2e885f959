"""What the MoE baselines need of gloo, through torch.distributed: barrier, exchange of counts, exchange of rows."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


class Gloo:
    """The ranks meet in a file, which is in the folder that the driver gave them to work in."""

    def __init__(self, spec: dict[str, Any]) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.rank, self.size = spec["rank"], spec["size"]
        store = dist.FileStore(os.path.abspath("store"), self.size)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size)
        self.barrier = dist.barrier

    def counts(self, sent: torch.Tensor) -> torch.Tensor:
        """How many rows come from each rank, having told each how many go there."""
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return received

    def rows(self, rows: torch.Tensor, sent: list[int], received: list[int], out: torch.Tensor) -> None:
        """Contiguous rows, by destination and by source."""
        dist.all_to_all_single(out, rows, received, sent)
