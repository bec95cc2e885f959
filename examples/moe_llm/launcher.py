"""Starts the ranks as `python -m xccl run -n N rank.py FOLDER` and follows what they write.

Called by demo.py. Whatever ends this (success, a failed rank, Ctrl-C), no rank is left behind: the launcher is
asked with one SIGINT, and it ends its ranks. Not here: what the ranks do (rank.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from errors import DemoError
from job import Event, Job, events_file

RANK_PROGRAM = Path(__file__).resolve().parent / "rank.py"
POLL_S = 0.05
GRACE_S = 15.0  # the launcher itself kills its ranks 5 seconds after asking them

OnEvents = Callable[[list[Event]], None]


class EventTail:
    """Reads the lines that ranks append to their event files, complete lines only."""

    def __init__(self, folder: Path, size: int) -> None:
        self._offsets = {events_file(folder, rank): 0 for rank in range(size)}

    def read(self) -> list[Event]:
        """What is new since the last call; empty while there is nothing."""
        return [event for path in self._offsets for event in self._read_file(path)]

    def _read_file(self, path: Path) -> list[Event]:
        try:
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                new = file.read()
        except FileNotFoundError:  # its rank is still starting
            return []
        complete = new[: new.rfind(b"\n") + 1]
        self._offsets[path] += len(complete)
        return [Event(**json.loads(line)) for line in complete.splitlines()]


def run_ranks(job: Job, size: int, folder: Path, on_events: OnEvents | None = None) -> None:
    """Run a job to its end in `size` ranks, its files in `folder`. on_events is called often, also with []."""
    if importlib.util.find_spec("xccl") is None:
        raise DemoError(
            "xccl is not installed in this Python; in the repository run: pip install . (or make demo)"
        )
    job.write(folder)
    tail = EventTail(folder, size)
    log = folder / "log.txt"
    command = [sys.executable, "-m", "xccl", "run", "-n", str(size), str(RANK_PROGRAM), str(folder)]
    with log.open("wb") as output:
        # Its own session, so that Ctrl-C reaches the launcher once, through us. Its working directory is the
        # folder, because in the repository `-m xccl` would find the sources and not what is installed.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
        try:
            _follow(process, tail, on_events)
        finally:
            _end(process)
    if process.returncode != 0:
        said = log.read_text(errors="replace").strip()
        raise DemoError(f"a rank failed (exit code {process.returncode}); the ranks said:\n{said[-4000:]}")


def _follow(process: subprocess.Popen[bytes], tail: EventTail, on_events: OnEvents | None) -> None:
    running = True
    while running:
        try:
            process.wait(POLL_S)
            running = False  # read once more: the last tokens may be newer than the last look
        except subprocess.TimeoutExpired:
            pass
        if on_events is not None:
            on_events(tail.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the launcher, and with it all ranks, are gone."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
