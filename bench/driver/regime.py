"""How far apart the cores are at this moment: on a virtual machine that changes within seconds.

A far pair of cores takes ten times as long to hand data over, so only samples of one regime are compared. The distance
is seen in the time that a cache line needs there and back between the cores of rank 0 and rank 1.
"""

from __future__ import annotations

import os

from xccl import _core

# Nanoseconds. Two threads of one core: about 50; one cache shared by both cores: about 100; else several hundred.
SAME_CORE_BELOW = 62.0
NEAR_BELOW = 250.0

ONE_CORE = "one core"


def round_trip_ns() -> float:
    """Of a cache line between the first two cores of this process; -1 if there is but one."""
    cores = sorted(os.sched_getaffinity(0))
    return _core.cache_line_round_trip_ns(cores[0], cores[1]) if len(cores) > 1 else -1.0


def regime_of(round_trip: float) -> str:
    """The name of the distance."""
    if round_trip < 0:
        return ONE_CORE
    if round_trip < SAME_CORE_BELOW:
        return "same core"
    return "near" if round_trip < NEAR_BELOW else "far"


def regime_between(before: float, after: float) -> str:
    """The regime of what was measured between two looks: "moved" if they differ."""
    return regime_of(before) if regime_of(before) == regime_of(after) else "moved"
