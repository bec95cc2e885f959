"""dispatch and combine over mpi4py. Option "compute": "torch" or "numpy"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parts.moe_work import Job, MoePart, Work
from parts.transport_mpi import Mpi


class Part(MoePart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        mpi = Mpi()
        super().__init__(mpi.rank, mpi.size, _maker(mpi, spec["options"]["compute"]))


def _maker(mpi: Mpi, compute: str) -> Callable[[Work], Job]:
    # Each environment has what it needs and may lack the other.
    if compute == "torch":
        from parts.moe_torch import TorchExchange, TorchJob

        return lambda work: TorchJob(TorchExchange(mpi), work)

    from parts.moe_numpy import NumpyJob

    return lambda work: NumpyJob(mpi, work)
