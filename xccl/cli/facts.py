"""What `doctor` tells: facts about this machine and about what XCCL will do here, section by section.

Each function looks at one subject and returns {what: value} with values that are text, numbers or lists,
ready for JSON. Native facts come from `xccl._core`. Judging them is in `doctor`.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from typing import Any

from xccl import _core
from xccl.launch.environment import check_single_host, detect

Facts = dict[str, Any]

# Pairs of cores to measure: enough to see near and far, and over in a fraction of a second.
_MOST_PAIRS = 24


def software() -> Facts:
    """Versions, and the kernels that this processor gets."""
    import numpy

    return {
        "xccl": _core.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "numpy": numpy.__version__,
        "row kernels": _core.kernels(),
    }


def machine() -> Facts:
    """The kernel and what it offers to processes that share memory."""
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "memfd_create": _memfd_works(),
        "pidfd_open": _pidfd_works(),
        "open files": _limit(resource.RLIMIT_NOFILE),
        "processes": _limit(resource.RLIMIT_NPROC),
    }


def memory() -> Facts:
    """How much there is, how much may still be taken, and who would refuse."""
    native = _core.machine()
    limit = native["address_space_limit"]
    return {
        "of the machine": _gib(native["physical_memory"]),
        "can still be taken": _gib(native["memory_headroom"]),
        "limited by": native["memory_limited_by"],
        "address space": "unlimited" if limit is None else f"{_gib(limit)} (ulimit -v)",
        "huge pages": native["huge_pages"],
    }


def cores() -> Facts:
    """How many there are for this process, and how far they are apart."""
    usable = sorted(os.sched_getaffinity(0))
    facts: Facts = {
        "of the machine": os.cpu_count(),
        "usable here": _core.machine()["usable_cores"],
        "affinity": _ranges(usable),
    }
    times = {pair: ns for pair in _pairs(usable) if (ns := _core.cache_line_round_trip_ns(*pair)) >= 0}
    for name, chosen in (("near", min), ("far", max)) if times else ():
        a, b = chosen(times, key=lambda pair: times[pair])
        facts[f"round trip, {name}"] = f"{times[a, b]:.0f} ns for a cache line between cores {a} and {b}"
    return facts


def launcher() -> Facts:
    """Which launcher, if any, started this process. Raises what `xccl.init()` would."""
    info = detect()
    if info is None:
        return {"seen": "none"}
    check_single_host(info)
    return {"seen": info.launcher, "rank": f"{info.rank} of {info.size}", "job": info.job}


def providers() -> Facts:
    """Each kind of global shared memory: "available", or why it is not."""
    return {name: f"no: {why_not}" if why_not else "available" for name, why_not in _core.providers()}


def waiting(ranks: int) -> Facts:
    """How `ranks` ranks will wait for each other on the cores of this process."""
    spin_ns, yield_ns = _core.wait_policy(ranks)
    how = f"a wait spins for {spin_ns / 1000:g} us, gives up its core for {yield_ns / 1000:g} us, then sleeps"
    return {f"with {ranks} {'rank' if ranks == 1 else 'ranks'}": how}


def settings() -> Facts:
    """Every environment variable that XCCL reads, with its value here."""
    return {
        name: {"value": value, "default": default, "meaning": meaning}
        for name, value, default, meaning in _core.config()
    }


def open_files_needed(ranks: int) -> int:
    """How many descriptors one rank may have open: one for each peer, some while connecting, and Python's
    own.
    """
    return 2 * ranks + 64


def _pairs(usable: list[int]) -> list[tuple[int, int]]:
    """From the first core to the others: all if they are few, else spread evenly. Near and far are among
    them.
    """
    others = usable[1:]
    step = max(1, -(-len(others) // _MOST_PAIRS))
    return [(usable[0], other) for other in others[::step]]


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _limit(which: int) -> str:
    soft, hard = ("unlimited" if v == resource.RLIM_INFINITY else str(v) for v in resource.getrlimit(which))
    return soft if soft == hard else f"{soft} (may be raised to {hard})"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _memfd_works() -> str:
    try:
        os.close(os.memfd_create("xccl-doctor", os.MFD_ALLOW_SEALING))
    except (AttributeError, OSError) as error:
        return f"no: {error}"
    return "works"


def _pidfd_works() -> str:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return f"no: {error} (needs Linux 5.3, and a container that permits it)"
    return "works"
