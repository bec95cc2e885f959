"""dispatch and combine over torch.distributed with gloo."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from parts.moe_torch import TorchJob
from parts.moe_work import MoePart
from parts.transport_gloo import Gloo


class Part(MoePart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        gloo = Gloo(spec)
        super().__init__(gloo.rank, gloo.size, lambda work: TorchJob(gloo, work))

    def close(self) -> None:
        """Leaves."""
        super().close()
        dist.destroy_process_group()
