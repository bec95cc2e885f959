"""Starting one rank's process, and ending processes so that none survives.

Used by `run`. Linux only: a rank dies with its launcher (PR_SET_PDEATHSIG), and whatever a rank leaves behind
becomes the launcher's child (PR_SET_CHILD_SUBREAPER), where it is found and ended. Deciding when is the
caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from xccl.launch.descendants import descendants

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Loaded now, because between fork and exec a process should do as little as it can.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def start_rank(
    command: Sequence[str], environ: Mapping[str, str], stdin: int, out: int, err: int
) -> subprocess.Popen[bytes]:
    """Starts a rank in a session of its own, so that a signal to its process group reaches its children as
    well.

    Raises OSError if it cannot be started.
    """
    launcher = os.getpid()
    return subprocess.Popen(
        command,
        env=dict(environ),
        stdin=stdin,
        stdout=out,
        stderr=err,
        start_new_session=True,
        preexec_fn=lambda: die_with(launcher),
    )


def die_with(parent: int) -> None:
    """From now on this process is killed when its parent dies; at once, if it has died already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """From now on a process whose parent among our descendants dies becomes our child."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def signal_group(leader: int, number: signal.Signals) -> None:
    """Sends a signal to a rank and to the children that stayed in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def reap() -> list[tuple[int, int]]:
    """(process id, exit code as in Popen.returncode) of every child that has ended since the last call."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def kill_all_descendants(seconds: float) -> list[int]:
    """Kills and collects every process below this one. Returns those that are still there after `seconds`."""
    deadline = time.monotonic() + seconds
    while alive := descendants(os.getpid()):
        if time.monotonic() > deadline:
            break
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.002)  # a killed process takes a moment to become one that can be collected
    return alive


def allow_open_files(count: int) -> None:
    """Raises this process's soft limit of open files to `count`, as far as its hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def describe_exit(code: int) -> str:
    """A process's end in words, from Popen.returncode."""
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (often the kernel's, out of memory: see the kernel log)" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
