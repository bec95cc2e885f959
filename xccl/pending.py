"""What `dispatch_async` and `combine_async` return: a call whose second half is still to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from xccl import _core
from xccl.arguments import deadline

Result = TypeVar("Result")


class Pending(Generic[Result]):
    """A dispatch or combine that has been started. Wait for it before the next call on its ExpertParallel.

    One that is dropped stays started: keep it. It keeps the arrays that it was given.
    """

    def __init__(
        self,
        name: str,
        native: _core.ExpertParallel,
        finish: Callable[[float], Result],
        kept: tuple[Any, ...],
    ) -> None:
        self._name = name
        self._native = native
        self._finish: Callable[[float], Result] | None = finish
        self._kept: tuple[Any, ...] | None = kept
        self._result: Result | None = None

    @property
    def done(self) -> bool:
        """Whether `wait` or `test` has finished it, or the progress thread: then neither waits. Makes no progress."""
        return self._finish is None or self._native.finished_aside

    def wait(self, timeout: float | None = None) -> Result:
        """What the call gives. Waits for the other ranks' halves, then pulls. May be called again: the same result.

        Raises Timeout, PeerLost, PeerFailed, Mismatch, Closed and OutOfMemory as the call in one piece does, and as
        there they end the communicator, since others count on what was started.
        """
        seconds = deadline(timeout)
        if self._finish is not None:
            self._result = self._finish(seconds)
            self._finish = self._kept = None
        return self._result  # type: ignore[return-value]

    def test(self) -> bool:
        """Whether it is done. If the others' halves are there, it pulls now; it never waits for another rank.

        Raises as `wait`, but for Timeout.
        """
        if self._finish is not None and self._native.can_finish():
            self.wait()
        return self._finish is None

    def __repr__(self) -> str:
        return f"<xccl.Pending {self._name}, {'done' if self.done else 'started'}>"
