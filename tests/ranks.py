"""Runs a function in every rank of a job and brings back what each rank returned or raised.

With the provider "local" the ranks are threads of the test; with "posix_shm" they are processes, which are started
once and used again, since importing numpy is what takes the time. Every run is a job of its own.
Used through the fixtures `ranks` and `processes` of conftest.py. `xccl.spawn` does nearly the same and has its own
tests; this one tells what happened in each rank, survives the death of some, and looks for what they left behind.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import xccl

HANG_S = 100.0  # no rank takes this long; pytest would end the test a little later


# `make asan-python`: what is freed stays away for a while, and a limit of address space would count shadows too.
UNDER_ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")


@dataclass
class Outcome:
    """How one rank's part ended: it returned `value`, raised `error`, or its process died with `exitcode`."""

    rank: int
    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    exitcode: int | None = None
    left_behind: Sequence[str] = ()

    @property
    def fine(self) -> bool:
        """It returned."""
        return self.error is None and self.exitcode is None


@dataclass
class Part:
    """What one rank is to do."""

    rank: int
    size: int
    job: str
    provider: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    environ: Mapping[str, str]
    joins: bool  # give the function a communicator; else it gets this Part

    def perform(self) -> Any:
        """Calls the function."""
        if not self.joins:
            return self.function(self, *self.args)
        with self.init() as comm:
            return self.function(comm, *self.args)

    def init(self, **options: Any) -> xccl.Communicator:
        """Joins the job."""
        return xccl.init(rank=self.rank, size=self.size, job=self.job, provider=self.provider, **options)

    def outcome(self) -> Outcome:
        """Calls the function and tells how it went. Nothing keeps the frames, and so the arrays in them, alive."""
        try:
            return Outcome(self.rank, value=self.perform())
        except BaseException as error:
            trace = traceback.format_exc()
            return Outcome(self.rank, error=error.with_traceback(None), trace=trace)


@contextlib.contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with these changes."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def shared_memory_in_use() -> list[str]:
    """Memory files and process descriptors of XCCL that this process still holds."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if "memfd:xccl" in target or "[pidfd]" in target:
                found.append(f"descriptor of {target}")
    maps = Path("/proc/self/maps").read_text().splitlines()
    return found + [f"mapping {line}" for line in maps if "memfd:xccl" in line]


class Running:
    """A run under way, as the function given as `meanwhile` sees it."""

    def __init__(self, pids: list[int], still_going: Callable[[], bool]) -> None:
        self.pids = pids  #: process ids, by rank
        self.still_going = still_going  #: has any rank not come back yet?


@dataclass(frozen=True)
class Ranks:
    """Starts runs with one provider and one set of environment variables."""

    provider: str
    pool: Pool
    environ: Mapping[str, str] = field(default_factory=dict)

    def variables(self, **environ: str) -> Ranks:
        """The same with more environment variables."""
        return replace(self, environ={**self.environ, **environ})

    def run(self, function: Callable[..., Any], size: int, *args: Any, **options: Any) -> list[Any]:
        """What `function(comm, *args)` returned on each of `size` ranks. Fails with the trace of a rank that raised."""
        outcomes = self.outcomes(function, size, *args, **options)
        failed = [outcome for outcome in outcomes if not outcome.fine]
        if failed:
            told = [f"rank {o.rank} of {size}: exit code {o.exitcode}\n{o.trace}" for o in failed]
            raise AssertionError("\n".join(told)) from failed[0].error
        return [outcome.value for outcome in outcomes]

    def outcomes(
        self,
        function: Callable[..., Any],
        size: int,
        *args: Any,
        joins: bool = True,
        meanwhile: Callable[[Running], None] | None = None,
    ) -> list[Outcome]:
        """How it went on each rank. `meanwhile` is called here once the ranks have been started.

        With joins=False the ranks get no communicator but the `Part` that they are to play.
        """
        job = f"test-{os.getpid()}-{next(_jobs)}"
        parts = [
            Part(rank, size, job, self.provider, function, args, self.environ, joins) for rank in range(size)
        ]
        found = (_in_threads if self.provider == "local" else self.pool.perform)(parts, meanwhile)
        left = [f"rank {outcome.rank}: {what}" for outcome in found for what in outcome.left_behind]
        assert not left, "after the run there were left:\n" + "\n".join(left)
        return found


_jobs = itertools.count()


def _in_threads(parts: Sequence[Part], meanwhile: Callable[[Running], None] | None) -> list[Outcome]:
    found: dict[int, Outcome] = {}

    def main(part: Part) -> None:
        found[part.rank] = part.outcome()

    threads = [threading.Thread(target=main, args=(part,), name=f"rank {part.rank}") for part in parts]
    with environment(parts[0].environ):
        for thread in threads:
            thread.start()
        try:
            if meanwhile:
                meanwhile(Running([os.getpid()] * len(parts), lambda: len(found) < len(parts)))
        finally:
            deadline = time.monotonic() + HANG_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
    late = [part.rank for part in parts if part.rank not in found]
    assert not late, f"ranks {late} did not come back within {HANG_S} s"
    return [found[part.rank] for part in parts]


class _Worker:
    """A process that performs parts, one after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_worker_main, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, rank: int) -> Outcome:
        """Its report, or how it died. Called when the connection is readable."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Outcome(rank, exitcode=self.process.exitcode)

    def end(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()


class Pool:
    """The processes, started when first needed."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    @property
    def pids(self) -> list[int]:
        """Of all processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid]

    def perform(
        self, parts: Sequence[Part], meanwhile: Callable[[Running], None] | None = None
    ) -> list[Outcome]:
        """Every part in a process of its own. A process that dies or hangs is not used again."""
        while len(self._workers) < len(parts):
            self._workers.append(_Worker())
        workers = self._workers[: len(parts)]
        pending = {
            worker.connection: (part.rank, worker) for part, worker in zip(parts, workers, strict=True)
        }
        found: dict[int, Outcome] = {}

        def collect(patience: float) -> bool:
            for connection in wait(list(pending), patience):
                rank, worker = pending.pop(connection)  # type: ignore[call-overload]
                found[rank] = worker.receive(rank)
            return bool(pending)

        try:
            for part, worker in zip(parts, workers, strict=True):
                worker.connection.send(part)
            if meanwhile:
                meanwhile(Running([worker.process.pid or 0 for worker in workers], lambda: collect(0.0)))
            deadline = time.monotonic() + HANG_S
            while pending:
                collect(max(0.0, deadline - time.monotonic()))
                assert time.monotonic() < deadline, f"no answer from ranks {[r for r, _ in pending.values()]}"
        finally:
            for worker in workers:
                if worker.connection in pending or not worker.process.is_alive():
                    self._workers.remove(worker)
                    worker.end()
        return [found[part.rank] for part in parts]

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()


def _worker_main(connection: Connection) -> None:
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            part = connection.recv()
            with environment(part.environ):
                outcome = part.outcome()
            connection.send_bytes(_packed(outcome))


def _packed(outcome: Outcome) -> bytes:
    try:
        packed = pickle.dumps(replace(outcome, left_behind=()))
    except Exception:  # an error that cannot be sent: its text will do
        packed = pickle.dumps(
            replace(outcome, value=None, error=RuntimeError(repr(outcome.error or outcome.value)))
        )
    # What the result itself keeps alive is its own affair: look after it has gone.
    outcome.value = outcome.error = None
    gc.collect()
    left = shared_memory_in_use() + [f"thread {t.name}" for t in threading.enumerate()[1:]]
    if not left:
        return packed
    return pickle.dumps(replace(pickle.loads(packed), left_behind=left))


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    """Waits for something that another rank or process will bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(0.002)


def state_of(pid: int) -> str:
    """R: runs; S: sleeps, such as a rank that has waited long; Z: ended and not waited for; "": gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def sleeps_steadily(pid: int) -> bool:
    """Does a process or thread sleep, not for a moment only as on the way to a wait?"""
    for _ in range(20):
        if state_of(pid) != "S":
            return False
        time.sleep(0.005)
    return True


def kill(pid: int) -> None:
    """kill -9, and until all that the process had open is closed."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state_of(pid) in ("Z", "") and threads_of(pid) <= 1, f"process {pid} has ended")


def threads_of(pid: int) -> int:
    """Threads that have not ended. The first may be a zombie while others still hold the process's files open."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def mark(folder: str | os.PathLike[str], name: str, text: str = "") -> None:
    """Leaves a file for others to wait for; it appears whole."""
    part = Path(folder, f".{name}.part")
    part.write_text(text)
    part.rename(Path(folder, name))


def marked(folder: str | os.PathLike[str], name: str) -> bool:
    """Has somebody left that file?"""
    return Path(folder, name).exists()


def error_of(call: Callable[..., Any], *args: Any, **options: Any) -> Exception:
    """The error that a call raises; raising none is an AssertionError."""
    try:
        call(*args, **options)
    except Exception as error:
        return error.with_traceback(None)
    raise AssertionError(f"{getattr(call, '__name__', call)} raised nothing")
