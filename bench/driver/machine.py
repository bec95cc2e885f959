"""What was measured, and on what: written into every file of results."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from peers.environments import ENVIRONMENTS

import xccl
from xccl import _core

ROOT = Path(__file__).resolve().parents[2]


def facts() -> dict[str, Any]:
    """The machine, the build of XCCL, the peers."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "xccl": f"{xccl.__version__} ({_core.__file__})",
        "commit": _commit(),
        "row kernels": _core.kernels(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "cores used": sorted(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "memory": _core.machine()["physical_memory"],
        "huge pages": _core.machine()["huge_pages"],
        "load before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "peers": {
            name: environment.why_missing() or environment.versions()
            for name, environment in ENVIRONMENTS.items()
        },
    }


def _commit() -> str:
    """Of the tree around the benchmarks; `make bench` has just installed what lies there."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit} with changes" if _git("status", "--porcelain", "--", "csrc", "xccl") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
