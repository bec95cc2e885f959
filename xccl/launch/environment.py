"""Which rank of which job is this process? Asks the core, which reads the variables that launchers set.

Called by `xccl.init()` and `doctor`. The table of launchers and their variables is in
csrc/group/launch_environment.hpp, because programs in other languages need it as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from xccl import _core

Environ = Mapping[str, str]


@dataclass(frozen=True)
class LaunchInfo:
    """What a launcher said about this process. `job` is the same in all ranks of one job, and in no other."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    job: str
    launcher: str


def detect(environ: Environ | None = None) -> LaunchInfo | None:
    """What the launcher of this process said, or None if there is none. `environ` is `os.environ` if not
    given.

    Raises InvalidArgument, naming the variables, if they contradict each other or half of them is missing.
    """
    given = os.environ if environ is None else environ
    # As bytes: a variable of somebody else's may hold anything.
    found = _core.detect_launch({os.fsencode(name): os.fsencode(value) for name, value in given.items()})
    if found is None:
        return None
    rank, size, local_rank, local_size, job, launcher = found
    return LaunchInfo(rank, size, local_rank, local_size, os.fsdecode(job), launcher)


def check_single_host(info: LaunchInfo) -> None:
    """Raises InvalidArgument if the job spans several hosts, which XCCL cannot do yet."""
    _core.require_single_host(info.launcher, info.local_size, info.size)
