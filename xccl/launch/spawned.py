"""What a process started by `xccl.spawn` does. It runs in that process, called by multiprocessing only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from xccl.launch.failures import Failure
from xccl.launch.processes import die_with


def rank_main(
    rank: int,
    size: int,
    job: str,
    provider: str | None,
    parent: int,
    reports: Connection,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Calls `fn` and reports once: a Failure, or the result in a tuple of one."""
    os.setsid()  # so that ending this rank can end what it has started, too
    die_with(parent)
    reporter = _Reporter(rank, reports)
    try:
        reporter.send((_call(rank, size, job, provider, fn, args, reporter),))
    except BaseException as error:
        reporter.failed(error)
        sys.exit(1)


class _Reporter:
    def __init__(self, rank: int, reports: Connection) -> None:
        self._rank = rank
        self._reports = reports
        self._done = False

    def send(self, report: Any) -> None:
        self._reports.send(report)  # pickles before it writes, so a result that cannot be sent leaves no half
        self._done = True

    def failed(self, error: BaseException) -> None:
        if not self._done:
            self.send(Failure.from_exception(self._rank, error))


def _call(
    rank: int,
    size: int,
    job: str,
    provider: str | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    reporter: _Reporter,
) -> Any:
    import xccl

    with xccl.init(rank=rank, size=size, job=job, provider=provider) as comm:
        try:
            return fn(comm, *args)
        except BaseException as error:
            reporter.failed(error)  # before the peers learn of it, so that the cause comes first
            raise
