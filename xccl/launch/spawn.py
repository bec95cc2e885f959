"""`xccl.spawn`: run a function in several ranks from a test, a script or a notebook, and get the results.

Ranks are new processes, or threads of this one with the local provider. What goes between this process and
the ranks that it started itself (the function, its arguments, its results) is pickled by `multiprocessing`;
ranks send each other nothing that way. Not here: starting programs (`run`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from xccl.arguments import positive_seconds, whole
from xccl.errors import InvalidArgument, Timeout
from xccl.launch.failures import CAUSE_MAY_TAKE_S, Failure, SpawnError, first_cause
from xccl.launch.processes import describe_exit, signal_group
from xccl.launch.spawned import rank_main
from xccl.launch.threads import run_in_threads

__all__ = ["SpawnError", "spawn"]

_GRACE_S = 5.0


def spawn(
    fn: Callable[..., Any],
    nprocs: int,
    args: Sequence[Any] = (),
    provider: str | None = None,
    timeout: float = 600.0,
) -> list[Any]:
    """Calls `fn(comm, *args)` in `nprocs` ranks and returns their results in the order of the ranks.

    Each rank has a communicator of its own, closed when `fn` returns. The ranks are new processes which
    import the module that defines `fn`; with `provider="local"` they are threads of this process, and `fn`
    may be anything.

    Raises:
        SpawnError: a rank failed. The others are ended; the error is that of the rank which failed first.
        Timeout: not all ranks returned within `timeout` seconds. Processes are ended, threads are left behind.
        InvalidArgument: `fn` or `args` cannot be given to another process, or `nprocs` is less than 1.
    """
    if not callable(fn):
        raise InvalidArgument(f"fn is a {type(fn).__name__}: expected a function")
    if isinstance(args, (str, bytes)) or not hasattr(args, "__iter__"):
        raise InvalidArgument(f"args={args!r}: expected a sequence of arguments for fn")
    nprocs = whole("nprocs", nprocs, 1)
    timeout = positive_seconds("timeout", timeout)
    provider = provider or os.environ.get("XCCL_PROVIDER") or None
    job = f"spawn-{os.getpid()}-{secrets.token_hex(4)}"
    if provider == "local":
        return run_in_threads(fn, nprocs, args, provider, job, timeout)
    _refuse_what_cannot_be_sent(fn, args)
    ranks: list[_Rank] = []
    try:
        for rank in range(nprocs):
            ranks.append(_Rank(rank, nprocs, job, provider, fn, args))
        return _results(ranks, timeout)
    finally:
        _end(ranks)


class _Rank:
    """One rank's process and the pipe on which it reports once."""

    def __init__(
        self,
        rank: int,
        size: int,
        job: str,
        provider: str | None,
        fn: Callable[..., Any],
        args: Sequence[Any],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.rank = rank
        self.reported = False
        self.reports, to_parent = context.Pipe(duplex=False)
        self.process = context.Process(
            target=rank_main,
            args=(rank, size, job, provider, os.getpid(), to_parent, fn, tuple(args)),
            name=f"xccl rank {rank}",
        )
        self.process.start()
        to_parent.close()  # the only copy left is the rank's, so that its death ends the pipe

    def report(self) -> Any:
        """What the rank reported: a result in a tuple of one, or a Failure. Called when its pipe is readable."""
        self.reported = True
        try:
            return self.reports.recv()
        except EOFError:
            return self._died()
        except Exception as error:  # its class cannot be imported here, say
            return Failure(self.rank, f"sent a result that cannot be read here: {error}")

    def _died(self) -> Failure:
        self.process.join(CAUSE_MAY_TAKE_S)
        code = self.process.exitcode
        end = "closed its pipe" if code is None else f"ended without a result: {describe_exit(code)}"
        hint = ""
        if code == 1:  # usually before fn ran: it cannot be imported, or the import calls spawn() again
            hint = " (see its error output; a script must call spawn() below `if __name__ == '__main__':`)"
        return Failure(self.rank, end + hint, exitcode=code)

    def signal(self, number: signal.Signals) -> None:
        """To the rank and all that it has started, whether it has come as far as making its group or not."""
        pid = self.process.pid
        if pid is None:
            return
        signal_group(pid, number)
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _end(ranks: Sequence[_Rank]) -> None:
    """Ends what still runs. A rank that has reported gets a while for its own way out: it may flush output."""
    for rank in ranks:
        if not rank.reported:
            rank.signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    for rank in ranks:
        rank.process.join(max(0.0, deadline - time.monotonic()))
    for rank in ranks:
        rank.signal(signal.SIGKILL)
        rank.process.join()
        rank.process.close()
        rank.reports.close()


def _results(ranks: Sequence[_Rank], timeout: float) -> list[Any]:
    """Waits for every rank's report. Raises on the first failure, once it is known which was the cause."""
    deadline = time.monotonic() + timeout
    pending = {rank.reports: rank for rank in ranks}
    results: dict[int, Any] = {}
    failures: list[Failure] = []
    while pending and first_cause(failures) is None:
        ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for rank in [pending.pop(pipe) for pipe in ready]:  # type: ignore[call-overload]
            report = rank.report()
            if isinstance(report, Failure):
                failures.append(report)
                deadline = min(deadline, time.monotonic() + CAUSE_MAY_TAKE_S)
            else:
                results[rank.rank] = report[0]
    if failures:
        raise SpawnError.of(first_cause(failures) or failures[0], len(ranks))
    if pending:
        late = sorted(rank.rank for rank in pending.values())
        raise Timeout(
            f"spawn: ranks {late} did not return within {timeout} seconds and were ended",
            op="spawn",
            ranks=late,
        )
    return [results[rank] for rank in range(len(ranks))]


def _refuse_what_cannot_be_sent(fn: Callable[..., Any], args: Iterable[Any]) -> None:
    name = getattr(fn, "__qualname__", repr(fn))
    remedy = (
        "move it to the top level of a .py file and import it from there, or use provider='local' (threads)"
    )
    main_file = getattr(sys.modules.get("__main__"), "__file__", "")
    if getattr(fn, "__module__", None) == "__main__" and not os.path.exists(main_file):
        raise InvalidArgument(
            f"spawn: new processes cannot import {name}, which this interactive session defines: {remedy}"
        )
    try:
        ForkingPickler.dumps(fn)
    except Exception as error:
        raise InvalidArgument(
            f"spawn: {name} cannot be given to a new process ({error}): {remedy}"
        ) from error
    try:
        ForkingPickler.dumps(tuple(args))
    except Exception as error:
        raise InvalidArgument(f"spawn: args cannot be given to a new process: {error}") from error
