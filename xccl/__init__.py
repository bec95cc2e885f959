"""XCCL: dispatch, combine and messages between the ranks of a mixture-of-experts model, over shared memory.

    comm = xccl.init()                      # under `python -m xccl run -n 4 script.py`, torchrun, mpirun or srun
    ep = xccl.ExpertParallel(comm, num_experts=64, hidden=1024, max_tokens=128, topk=8)
    d = ep.dispatch(x, topk_idx, topk_weights)
    y = ep.combine(my_experts(d), d)

Not PyTorch's backend string "xccl", which is Intel's and another thing. Importing does no work.
"""

try:
    from xccl._core import ANY_SOURCE, ANY_TAG, Request, Status, View, __version__
except ModuleNotFoundError as error:
    if error.name != "xccl._core":
        raise
    raise ImportError(
        f"{__path__[0]} holds XCCL's sources only, without the compiled part. `pip install .` builds it; then start "
        "Python in another folder, or use the `xccl` command instead of `python -m xccl`"
    ) from None

from xccl import eplb
from xccl.array import Array
from xccl.c_library import get_cmake_dir, get_include, get_lib, get_pkgconfig_dir
from xccl.communicator import Communicator, init
from xccl.disaggregated import DisaggregatedExperts
from xccl.errors import (
    Closed,
    Error,
    InvalidArgument,
    Mismatch,
    OutOfMemory,
    PeerFailed,
    PeerLost,
    Timeout,
    Truncated,
)
from xccl.expert_parallel import Dispatched, ExpertParallel, Plan, Routing
from xccl.launch.spawn import SpawnError, spawn
from xccl.wait_stats import WaitStats

__all__ = [
    "ANY_SOURCE",
    "ANY_TAG",
    "Array",
    "Closed",
    "Communicator",
    "DisaggregatedExperts",
    "Dispatched",
    "Error",
    "ExpertParallel",
    "InvalidArgument",
    "Mismatch",
    "OutOfMemory",
    "PeerFailed",
    "PeerLost",
    "Plan",
    "Request",
    "Routing",
    "SpawnError",
    "Status",
    "Timeout",
    "Truncated",
    "View",
    "WaitStats",
    "__version__",
    "eplb",
    "get_cmake_dir",
    "get_include",
    "get_lib",
    "get_pkgconfig_dir",
    "init",
    "spawn",
]
