"""Which of several failures was the cause, and the error that tells it.

Used by `run`, `spawn` and `threads`. Not here: ending the other ranks.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from xccl.errors import Error, PeerFailed, PeerLost

# A rank that ends because a peer was lost or failed is not the cause; the cause gets this long to show
# itself.
CAUSE_MAY_TAKE_S = 2.0

_BLAMES_A_PEER = re.compile(r"^(?:\w+\.)*(?:PeerLost|PeerFailed)\b", re.MULTILINE)


def blames_a_peer(text: str) -> bool:
    """Does this end of a rank's output say that the failure was another rank's?"""
    return _BLAMES_A_PEER.search(text) is not None


class SpawnError(Error):
    """A rank started by `xccl.spawn` failed; of several, the one that failed first. The message holds it all.

    Attributes:
        rank: which one; also the only one in `ranks`.
        exitcode: how its process ended (negative: by that signal); None if it raised, or is a thread.
        traceback: its traceback as text; empty if it ended without one.
    """

    def __init__(
        self, message: str = "", *, rank: int = -1, exitcode: int | None = None, traceback: str = ""
    ) -> None:
        super().__init__(message, op="spawn", ranks=[rank])
        self.rank = rank
        self.exitcode = exitcode
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (str(self), self.rank, self.exitcode, self.traceback))

    @classmethod
    def of(cls, failure: Failure, size: int) -> SpawnError:
        """The error that tells of this failure among `size` ranks."""
        message = f"rank {failure.rank} of {size} {failure.what}"
        message += "".join(f"\n    {line}" for line in failure.traceback.splitlines())
        return cls(message, rank=failure.rank, exitcode=failure.exitcode, traceback=failure.traceback)


def _rebuild(message: str, rank: int, exitcode: int | None, traceback: str) -> SpawnError:
    return SpawnError(message, rank=rank, exitcode=exitcode, traceback=traceback)


@dataclass(frozen=True)
class Failure:
    """How one rank failed. `what` completes the sentence "rank 3 of 4 ..."; `blaming`: it tells of a peer's."""

    rank: int
    what: str
    traceback: str = ""
    exitcode: int | None = None
    blaming: bool = False

    @classmethod
    def from_exception(cls, rank: int, error: BaseException) -> Failure:
        """What is told of an exception that a rank raised."""
        said = "".join(traceback.format_exception_only(type(error), error)).strip()
        whole = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(rank, f"raised {said}", whole, blaming=isinstance(error, (PeerLost, PeerFailed)))


def first_cause(failures: Sequence[Failure]) -> Failure | None:
    """The first failure that blames no peer, if there is one."""
    return next((failure for failure in failures if not failure.blaming), None)
