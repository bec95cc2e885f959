"""That all ranks make a `DisaggregatedExperts` with the same arguments; other ones would be no error, but a hang.

An ExpertParallel checks the same for its own ranks. But by trampoline attention ranks have none, and numbers of
micro-batches and domains decide how many communicators there are. Used by experts.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from xccl.communicator import Communicator
from xccl.errors import Mismatch


def require_agreement(comm: Communicator, arguments: Mapping[str, Any], timeout: float | None) -> None:
    """Collective: all ranks give the same, or all of them get a Mismatch that names the first argument that differs."""
    mine = np.array([_digest(value) for value in arguments.values()], np.int64)
    told = comm.all_gather(mine, timeout=timeout)
    for (name, value), digests in zip(arguments.items(), told.T, strict=True):
        differ = np.flatnonzero(digests != digests[comm.rank]).tolist()
        if differ:
            raise Mismatch(
                f"DisaggregatedExperts: rank {comm.rank} has {name}={value!r}, "
                f"{'rank' if len(differ) == 1 else 'ranks'} {', '.join(map(str, differ))} another",
                op="DisaggregatedExperts",
                ranks=differ,
            )


def _digest(value: Any) -> int:
    """The same in all processes for values that look the same, unlike `hash`."""
    return int.from_bytes(
        hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little", signed=True
    )
