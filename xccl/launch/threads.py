"""The ranks of `xccl.spawn` as threads of this process, for the local provider. Called by `spawn` only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from xccl.errors import Timeout
from xccl.launch.failures import CAUSE_MAY_TAKE_S, Failure, SpawnError, first_cause


def run_in_threads(
    fn: Callable[..., Any], size: int, args: Sequence[Any], provider: str, job: str, timeout: float
) -> list[Any]:
    """As `spawn`. Threads cannot be ended from outside: those that do not return in time are left behind."""
    group = _Group(fn, size, args, provider, job)
    threads = [threading.Thread(target=group.rank_main, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    group.wait(timeout)
    if not group.failures:
        late = [rank for rank, thread in enumerate(threads) if rank not in group.results]
        if late:
            raise Timeout(
                f"spawn: ranks {late} did not return within {timeout} seconds; their threads are left behind",
                op="spawn",
                ranks=late,
            )
        return [group.results[rank] for rank in range(size)]
    error, failure = group.first()
    raise SpawnError.of(failure, size) from error


class _Group:
    """What the threads share. `changed` guards `results` and `failures`."""

    def __init__(
        self, fn: Callable[..., Any], size: int, args: Sequence[Any], provider: str, job: str
    ) -> None:
        self.fn = fn
        self.size = size
        self.args = args
        self.provider = provider
        self.job = job
        self.changed = threading.Condition()
        self.results: dict[int, Any] = {}
        self.failures: list[tuple[BaseException, Failure]] = []

    def rank_main(self, rank: int) -> None:
        import xccl

        try:
            with xccl.init(rank=rank, size=self.size, job=self.job, provider=self.provider) as comm:
                try:
                    result = self.fn(comm, *self.args)
                except BaseException as error:
                    self._failed(rank, error)  # before the peers learn of it, so that the cause comes first
                    raise
        except BaseException as error:
            self._failed(rank, error)
        else:
            with self.changed:
                self.results[rank] = result
                self.changed.notify_all()

    def wait(self, timeout: float) -> None:
        """Until all ranks are through; after a failure only as long as its cause may take to show."""
        deadline = time.monotonic() + timeout
        with self.changed:
            self.changed.wait_for(lambda: self.failures or self._all_through(), timeout)
            if self.failures:
                left = min(deadline - time.monotonic(), CAUSE_MAY_TAKE_S)
                self.changed.wait_for(self._all_through, max(0.0, left))

    def first(self) -> tuple[BaseException, Failure]:
        with self.changed:
            cause = first_cause([failure for _, failure in self.failures])
            return next((pair for pair in self.failures if pair[1] is cause), self.failures[0])

    def _all_through(self) -> bool:
        return len(self.results) + len({failure.rank for _, failure in self.failures}) == self.size

    def _failed(self, rank: int, error: BaseException) -> None:
        with self.changed:
            if any(failure.rank == rank for _, failure in self.failures):
                return
            self.failures.append((error, Failure.from_exception(rank, error)))
            self.changed.notify_all()
