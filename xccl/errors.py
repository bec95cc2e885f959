"""The exceptions of XCCL: one class per status of the core (csrc/base/status.hpp), each with fields.

Raised by the bindings and by the Python layer; users catch them. Not here: `SpawnError` (xccl/launch/spawn.py).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "Closed",
    "Error",
    "InvalidArgument",
    "Mismatch",
    "OutOfMemory",
    "PeerFailed",
    "PeerLost",
    "Timeout",
    "Truncated",
]


class Error(Exception):
    """Whatever goes wrong in XCCL; itself raised when the system or the library fails.

    Attributes:
        op: the operation, such as "dispatch"; "" outside of one.
        seq: which call of that operation it was on its object, from 1; 0 outside of one.
        phase: where in the operation, such as "waiting"; "" if not known.
        ranks: the ranks at fault: dead, late, failed or disagreeing. Empty if none is.
    """

    def __init__(
        self, message: str = "", *, op: str = "", seq: int = 0, phase: str = "", ranks: Sequence[int] = ()
    ) -> None:
        super().__init__(message)
        self.op = op
        self.seq = seq
        self.phase = phase
        self.ranks = list(ranks)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel between the processes of a pool or of pytest-xdist: the fields must travel too.
        return (_rebuild, (type(self), str(self), self.op, self.seq, self.phase, self.ranks))


def _rebuild(kind: type[Error], message: str, op: str, seq: int, phase: str, ranks: list[int]) -> Error:
    return kind(message, op=op, seq=seq, phase=phase, ranks=ranks)


class InvalidArgument(Error, ValueError):
    """An argument is wrong. Nothing was sent and nothing changed: correct it and call again."""


class Mismatch(Error):
    """Ranks called the same operation with arguments that disagree; `ranks` are those that differ from this one."""


class Timeout(Error, TimeoutError):
    """The deadline passed. `ranks` are alive but late."""


class PeerLost(Error, ConnectionError):
    """`ranks` died."""


class PeerFailed(Error):
    """`ranks` raised an error; the message holds its text."""


class Truncated(Error):
    """A message is larger than the array that should receive it."""


class OutOfMemory(Error, MemoryError):
    """Memory cannot be had. The message names the limit that forbids it."""


class Closed(Error):
    """The object, or a rank that is needed (`ranks`), has been closed."""


_CLASS_OF_STATUS: dict[str, type[Error]] = {
    "Failure": Error,
    "InvalidArgument": InvalidArgument,
    "Mismatch": Mismatch,
    "Timeout": Timeout,
    "PeerLost": PeerLost,
    "PeerFailed": PeerFailed,
    "Truncated": Truncated,
    "OutOfMemory": OutOfMemory,
    "Closed": Closed,
}


def class_of_status(name: str) -> type[Error]:
    """The class for a status of the core. Called by the bindings when they raise."""
    return _CLASS_OF_STATUS[name]
