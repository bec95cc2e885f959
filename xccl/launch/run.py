"""The launcher behind `python -m xccl run`: starts the ranks of one job, watches them, ends them together.

Called by the command line, in a process that has no other children: all of this process's descendants are
taken for the job's. What it promises: if a rank fails, the others are ended, the first failure is told last,
and the exit code says so; when `run` returns, or the launcher dies in whatever way, no rank is left. Not
here: how ranks connect.
"""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xccl.launch.failures import CAUSE_MAY_TAKE_S, blames_a_peer
from xccl.launch.output import Merger, Stream, last_lines, write_all
from xccl.launch.processes import (
    adopt_orphans,
    allow_open_files,
    describe_exit,
    kill_all_descendants,
    reap,
    signal_group,
    start_rank,
)
from xccl.launch.signals import SignalPipe

# `timeout` and some shells send a signal to a process and at once again to its group: that is asking once.
_SAME_REQUEST_S = 0.5

_NEVER = float("inf")
_READ_BYTES = 1 << 16
_KILL_S = 10.0


@dataclass(frozen=True)
class Options:
    """What `python -m xccl run` was asked for. `grace` is in seconds."""

    size: int
    job: str | None = None
    tag_output: bool = False
    grace: float = 5.0


@dataclass(eq=False)
class _Rank:
    rank: int
    process: subprocess.Popen[bytes]
    out: Stream
    err: Stream
    code: int | None = None


def run(command: Sequence[str], options: Options) -> int:
    """Runs `command` in `options.size` ranks. Returns the exit code for the launcher.

    0 if every rank returned 0; else that of the rank which failed first, 128 + the number of the signal that
    ended it, 126 or 127 if the command cannot be started; 128 + the signal that the launcher itself was told
    to stop by.
    """
    _open_standard_files()
    with SignalPipe(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, also=(signal.SIGCHLD,)) as signals:
        job = _Job(command, options, signals)
        try:
            return job.run()
        except BrokenPipeError:  # nobody reads what we write: the same end as for any other program
            return 128 + signal.SIGPIPE
        finally:
            kill_all_descendants(_KILL_S)


class _Job:
    def __init__(self, command: Sequence[str], options: Options, signals: SignalPipe) -> None:
        self._command = command
        self._options = options
        self._signals = signals
        self._merger = Merger(live=os.isatty(1))
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals.fd, selectors.EVENT_READ, None)
        self._ranks: list[_Rank] = []
        self._running: dict[int, _Rank] = {}
        self._failed: list[_Rank] = []  # those that failed by themselves, in the order in which it was seen
        self._end_at: float | None = None  # when to begin ending the others
        self._kill_at: float | None = None  # set once the ending has begun
        self._stopped_by: int | None = None
        self._stopped_at = 0.0

    def run(self) -> int:
        adopt_orphans()
        allow_open_files(2 * self._options.size + 64)
        problem = self._start_all()
        if problem is not None:
            self._end(signal.SIGTERM)
        while self._running:
            self._turn(wait=True)
        for pid in kill_all_descendants(_KILL_S):
            _say(f"xccl run: process {pid} of this job does not end; the kernel may be waiting for a device")
        self._drain(*(stream for rank in self._ranks for stream in (rank.out, rank.err)))
        return self._conclude(problem)

    # -- starting

    def _start_all(self) -> OSError | None:
        environ = _common_environment(self._options)
        for rank in range(self._options.size):
            try:
                self._start(rank, environ)
            except OSError as problem:
                return problem
            self._turn(wait=False)
            if self._kill_at is not None:
                break
        return None

    def _start(self, rank: int, environ: Mapping[str, str]) -> None:
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        stdin = _stdin_for(rank)
        try:
            mine = {"XCCL_RANK": str(rank), "XCCL_LOCAL_RANK": str(rank)}
            process = start_rank(self._command, {**environ, **mine}, stdin, out_write, err_write)
        except BaseException:
            os.close(out_read)
            os.close(err_read)
            raise
        finally:
            os.close(out_write)
            os.close(err_write)
        prefix = f"[{rank}] ".encode() if self._options.tag_output else b""
        started = _Rank(rank, process, Stream(1, prefix), Stream(2, prefix))
        for fd, stream in ((out_read, started.out), (err_read, started.err)):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, stream)
        self._ranks.append(started)
        self._running[process.pid] = started

    # -- watching

    def _turn(self, wait: bool) -> None:
        """Handles what has happened; with `wait`, waits for something to happen first."""
        due = [t for t in (self._end_at, self._kill_at) if t is not None and t != _NEVER]
        left = [max(0.0, t - time.monotonic()) for t in due]
        if (growing := self._merger.show_growing()) is not None:
            left.append(growing)
        for key, _ in self._selector.select(min(left, default=None) if wait else 0):
            if key.data is None:
                self._on_signals()
            else:
                self._read(key)
        self._collect()
        self._keep_deadlines()

    def _on_signals(self) -> None:
        for number in self._signals.read():
            if number == signal.SIGCHLD:
                continue
            if self._kill_at is None:
                self._stopped_by = number
                self._stopped_at = time.monotonic()
                self._end(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            elif time.monotonic() > self._stopped_at + _SAME_REQUEST_S:
                self._kill_at = time.monotonic()  # asked again: no more patience

    def _read(self, key: selectors.SelectorKey) -> bool:
        """Takes what one rank wrote. False if there is nothing more for now."""
        try:
            data = os.read(key.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._merger.feed(key.data, data)
            return True
        self._selector.unregister(key.fd)
        os.close(key.fd)
        return False

    def _drain(self, *streams: Stream) -> None:
        """Takes all that was written to these streams until now by ranks that have ended."""
        for key in list(self._selector.get_map().values()):
            if key.data in streams:
                while self._read(key):
                    pass
        for stream in streams:
            self._merger.finish(stream)

    def _collect(self) -> None:
        """Notes which ranks have ended."""
        for pid, code in reap():
            rank = self._running.pop(pid, None)
            if rank is None:
                continue  # an orphan of some rank
            rank.code = rank.process.returncode = code
            if code != 0 and self._kill_at is None:
                self._note_failure(rank)

    def _note_failure(self, rank: _Rank) -> None:
        self._drain(rank.out, rank.err)
        self._failed.append(rank)
        delay = CAUSE_MAY_TAKE_S if _blames_a_peer(rank) else 0.0
        self._end_at = min(self._end_at or _NEVER, time.monotonic() + delay)

    # -- ending

    def _keep_deadlines(self) -> None:
        now = time.monotonic()
        if self._end_at is not None and now >= self._end_at:
            self._end(signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            for pid in self._running:
                signal_group(pid, signal.SIGKILL)
            self._kill_at = _NEVER

    def _end(self, number: signal.Signals) -> None:
        """Tells the ranks that still run to end; those that have not after the grace period are killed."""
        self._end_at = None
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._options.grace
            for pid in self._running:
                signal_group(pid, number)

    def _conclude(self, problem: OSError | None) -> int:
        if problem is not None:
            why = _explain(problem, self._command[0])
            _say(f"xccl run: rank {len(self._ranks)} could not be started: {why}")
            return {errno.ENOENT: 127, errno.EACCES: 126}.get(problem.errno or 0, 1)
        if self._failed:
            first = next((rank for rank in self._failed if not _blames_a_peer(rank)), self._failed[0])
            _say(_report(first, self._options.size))
            return _exit_code(first)
        if self._stopped_by is not None:
            _say(f"xccl run: ended by {signal.Signals(self._stopped_by).name}")
            return 128 + self._stopped_by
        return 0


def _common_environment(options: Options) -> dict[str, str]:
    environ = dict(os.environ)
    environ["XCCL_SIZE"] = environ["XCCL_LOCAL_SIZE"] = str(options.size)
    environ["XCCL_JOB"] = options.job or f"run-{os.getpid()}-{secrets.token_hex(4)}"
    # A pipe makes Python hold output back, a terminal does not: ranks should not notice the pipe.
    environ.setdefault("PYTHONUNBUFFERED", "1")
    # Every rank would start as many threads as there are cores; n times that many only hinder each other.
    cores = len(os.sched_getaffinity(0))
    environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // options.size)))
    return environ


def _open_standard_files() -> None:
    """Descriptors 0 to 2 are open after this: a pipe of ours must not become a rank's standard input."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _stdin_for(rank: int) -> int:
    """Rank 0 reads what the launcher could read; a terminal only where the launcher is in the foreground."""
    try:
        if rank == 0 and (not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()):
            return 0
    except OSError:
        pass  # a terminal, but not the one of our session
    return subprocess.DEVNULL


def _blames_a_peer(rank: _Rank) -> bool:
    return blames_a_peer(last_lines(rank.err))


def _exit_code(rank: _Rank) -> int:
    code = rank.code or 0
    return code if code >= 0 else 128 - code


def _report(first: _Rank, size: int) -> str:
    lines = [f"xccl run: rank {first.rank} of {size} failed first: {describe_exit(first.code or 0)}"]
    if said := last_lines(first.err):
        lines.append("It wrote to stderr at last:")
        lines += [f"    {line}" for line in said.splitlines()]
    return "\n".join(lines)


def _explain(problem: OSError, program: str) -> str:
    if problem.errno == errno.ENOENT:
        return f"there is no program {program!r} (a Python file must end in .py; for a module use -m)"
    if problem.errno == errno.EACCES:
        return f"{program!r} is not executable"
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        return f"{problem.strerror}: raise the limit of open files (ulimit -n)"
    if problem.errno == errno.EAGAIN:
        return f"{problem.strerror}: raise the limit of processes (ulimit -u) or that of the container"
    return str(problem)


def program(words: Sequence[str], module: bool) -> list[str]:
    """The command line of one rank: a module or a .py file for this Python, or any program.

    Raises FileNotFoundError if the .py file is not there, so that not every rank has to find out.
    """
    if module:
        return [sys.executable, "-m", *words]
    if words[0].endswith(".py"):
        if not os.path.exists(words[0]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), words[0])
        return [sys.executable, *words]
    return list(words)


def _say(text: str) -> None:
    write_all(2, text.encode(errors="replace") + b"\n")
