"""`migrate`: brings experts' weights to the ranks that are to host them, while dispatch and combine go on.

Only messages of one communicator are used. Not here: which experts move (rebalance.py), and the placement itself, which
`ExpertParallel.set_placement` changes when the weights are there.

    copying    each step() sends and receives one piece of at most `step_bytes`; new weights go to spare memory
    agreeing   this rank has all of its weights, and has sent what others want; some other rank has not
    ready      the same step() on every rank has returned True
    installed  install() has copied the new weights into their slots
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from xccl import _core
from xccl.arguments import refuse_objects, whole, whole_numbers
from xccl.array import as_array
from xccl.communicator import Communicator
from xccl.eplb.spread import Move
from xccl.errors import InvalidArgument, Mismatch

_WEIGHTS, _DONE, _READY = 0, 1, 2  # tags
_COORDINATOR = 0

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_Start = Callable[[], _core.Request]


def migrate(
    comm: Communicator,
    weights: Any,
    moves: Sequence[Move],
    *,
    step_bytes: int = 8 << 20,
    timeout: float | None = None,
) -> Migration:
    """Begins to carry out moves of experts. Collective and short: it checks that all ranks mean the same.

        migration = xccl.eplb.migrate(comm.split(0), weights, plan.moves)
        while not migration.step():
            ...                              # a dispatch or combine of all ranks, such as one pass of the model
        migration.install()
        ep.set_placement(plan.placement)

    Args:
        comm: a communicator that carries no other messages until the migration is ready, such as `comm.split(0)`.
        weights: an array, or several; weights[slot], or weights[i][slot], is what belongs to the expert in that slot of
            this rank. C-contiguous; they are read until the migration is ready, and written by install() alone.
        moves: `Rebalanced.moves`, the same on all ranks. One that comes from no rank is refused: load those weights
            where they are to be had, after install().
        step_bytes: the most that one step() sends, and receives.

    New weights lie in spare memory until install(), since their slots serve other experts until then.

    Raises InvalidArgument, on the rank whose arguments are wrong; Mismatch, on all, if they differ, which leaves `comm`
    usable. Otherwise as a collective.
    """
    arrays = _arrays(weights)
    moves = _moves(moves)
    step_bytes = whole("step_bytes", step_bytes, 1)
    _check_moves(comm, arrays, moves)
    _agree(comm, arrays, moves, step_bytes, timeout)
    return Migration(comm, arrays, moves, step_bytes)


class Migration:
    """A migration under way; made by `migrate`. Dropping it leaves every weight where it was."""

    def __init__(
        self, comm: Communicator, weights: list[Any], moves: Sequence[Move], step_bytes: int
    ) -> None:
        self._comm = comm
        self._weights = weights
        self._step_bytes = step_bytes
        self._steps = 0
        self._ready_at: int | None = None  # the number of the step() at which all ranks are ready
        self._phase = "copying"
        self._spare: list[
            tuple[int, list[Any]]
        ] = []  # for each incoming expert its slot, and its weights so far
        self._sending = _Lane(self._outgoing(moves))
        self._receiving = _Lane(self._incoming(moves))
        self._agreement = self._coordinate() if comm.rank == _COORDINATOR else self._follow()

    @property
    def phase(self) -> str:
        """ "copying", "agreeing", "ready" or "installed"."""
        return self._phase

    def test(self) -> bool:
        """Whether all ranks are ready, as the latest step() said. Does nothing."""
        return self._phase in ("ready", "installed")

    def step(self) -> bool:
        """Does a little, never waits, and tells whether the weights are there: True on all ranks in the same step.

        All ranks call it equally often, and between two of its calls they take part in at least one call that waits for
        all ranks, such as a dispatch: that is how they can know that the others know. Mismatch if they do not. Raises
        PeerLost and the like as messages do.
        """
        if self.test():
            return True
        self._steps += 1
        busy = [lane.advance() for lane in (self._sending, self._receiving)]
        if self._phase == "copying" and not any(busy):
            self._phase = "agreeing"
        next(self._agreement)
        if self._ready_at is not None and self._steps >= self._ready_at:
            if self._steps > self._ready_at:
                raise Mismatch(
                    f"rank {self._comm.rank} is in step {self._steps} and hears only now that all were ready in step "
                    f"{self._ready_at}: between two steps all ranks must take part in a call that waits for all",
                    ranks=[_COORDINATOR],
                )
            self._phase = "ready"
        return self.test()

    def install(self) -> None:
        """Copies the new weights into their slots, which is when they change; follow it by set_placement().

        Safe to call twice. Raises InvalidArgument before step() has returned True.
        """
        if not self.test():
            raise InvalidArgument("the migration is not ready: call install() after step() has returned True")
        for slot, parts in self._spare:
            for array, part in zip(self._weights, parts, strict=True):
                array[slot] = part
        self._spare.clear()
        self._phase = "installed"

    def _outgoing(self, moves: Sequence[Move]) -> Iterator[_Start]:
        for move in moves:
            if move.from_rank != self._comm.rank:
                continue
            for array in self._weights:
                for piece in self._pieces(array[move.from_slot : move.from_slot + 1]):
                    yield partial(self._comm.isend, piece, move.to_rank, _WEIGHTS)

    def _incoming(self, moves: Sequence[Move]) -> Iterator[_Start]:
        for move in moves:
            if move.to_rank != self._comm.rank:
                continue
            parts = [np.empty_like(array[0], subok=False) for array in self._weights]
            self._spare.append((move.to_slot, parts))
            for part in parts:
                for piece in self._pieces(part[None]):
                    yield partial(self._comm.irecv, piece, move.from_rank, _WEIGHTS)

    def _pieces(self, part: Any) -> Iterator[_Bytes]:
        """The bytes of an expert's part of one array, in messages of at most step_bytes."""
        flat = part.reshape(-1).view(np.uint8)
        for first in range(0, flat.size, self._step_bytes):
            yield flat[first : first + self._step_bytes]

    # How all ranks come to be ready in the same step. A rank that is done says so to the coordinator. When all have,
    # the coordinator tells everybody, in its step k, that they will be ready in step k + 1: by then they have heard it,
    # since the call between the two steps waited for the coordinator, which had sent it before.

    def _coordinate(self) -> Iterator[None]:
        others = [rank for rank in range(self._comm.size) if rank != _COORDINATOR]
        done = [self._comm.irecv(np.empty(1, np.int64), rank, _DONE) for rank in others]
        while not all([request.test() for request in done]) or self._phase == "copying":
            yield
        self._ready_at = self._steps + 1
        told = [self._comm.isend(np.array([self._ready_at]), rank, _READY) for rank in others]
        while True:
            [request.test() for request in told]
            yield

    def _follow(self) -> Iterator[None]:
        number = np.empty(1, np.int64)
        ready = self._comm.irecv(number, _COORDINATOR, _READY)
        while self._phase == "copying":
            yield
        done = self._comm.isend(np.zeros(1, np.int64), _COORDINATOR, _DONE)
        while not ready.test():
            done.test()
            yield
        self._ready_at = int(number[0])
        while True:
            yield


class _Lane:
    """Messages one after the other: the next is begun when the one before has finished."""

    def __init__(self, starts: Iterator[_Start]) -> None:
        self._starts = starts
        self._request: _core.Request | None = None

    def advance(self) -> bool:
        """Begins at most one message. False when all have finished."""
        if self._request is not None and not self._request.test():
            return True
        start = next(self._starts, None)
        self._request = start() if start else None
        return self._request is not None


def _arrays(weights: Any) -> list[Any]:
    arrays = [
        as_array("weights", one) for one in (weights if isinstance(weights, (list, tuple)) else [weights])
    ]
    for array in arrays:
        refuse_objects("weights", array.dtype)
        if array.ndim == 0 or not array.flags.c_contiguous or not array.flags.writeable:
            raise InvalidArgument(
                "weights: expected C-contiguous, writable arrays with a first dimension of slots"
            )
    if len({len(array) for array in arrays}) > 1:
        raise InvalidArgument(
            f"weights have {[len(array) for array in arrays]} slots: expected as many in each"
        )
    return arrays


def _moves(moves: Any) -> list[Move]:
    if isinstance(moves, (str, bytes)) or not hasattr(moves, "__iter__"):
        raise InvalidArgument(f"moves={moves!r}: expected a sequence of xccl.eplb.Move")
    found = [whole_numbers("moves", move) for move in moves]
    for numbers in found:
        if len(numbers) != len(Move._fields):
            raise InvalidArgument(f"moves: {numbers} is none: expected {', '.join(Move._fields)}")
    return [Move(*numbers) for numbers in found]


def _check_moves(comm: Communicator, arrays: list[Any], moves: Sequence[Move]) -> None:
    slots = len(arrays[0]) if arrays else 0
    for move in moves:
        if move.from_rank == -1:
            raise InvalidArgument(
                f"moves: expert {move.expert} comes from no rank, so it has to be loaded; leave the move out"
            )
        for what, rank, slot in (("from", *move[1:3]), ("to", *move[3:5])):
            if not 0 <= rank < comm.size:
                raise InvalidArgument(
                    f"moves: expert {move.expert} goes {what} rank {rank}: expected 0 to {comm.size - 1}"
                )
            if rank == comm.rank and not 0 <= slot < slots:
                raise InvalidArgument(
                    f"moves: expert {move.expert} goes {what} slot {slot} of rank {rank}, where weights have {slots}"
                )
    targets = [move[3:5] for move in moves]
    if len(set(targets)) < len(targets):
        raise InvalidArgument("moves: two experts go to the same slot")


def _agree(
    comm: Communicator, arrays: list[Any], moves: Sequence[Move], step_bytes: int, timeout: float | None
) -> None:
    meant = (list(map(tuple, moves)), [(array.shape[1:], array.dtype.str) for array in arrays], step_bytes)
    digests = comm.all_gather(
        np.frombuffer(hashlib.sha256(repr(meant).encode()).digest(), np.uint8), timeout=timeout
    )
    differ = [rank for rank in range(comm.size) if (digests[rank] != digests[comm.rank]).any()]
    if differ:
        raise Mismatch(
            f"migrate: rank {comm.rank} has other moves, weights of another shape or dtype, or another step_bytes than "
            f"rank{'s' * (len(differ) > 1)} {', '.join(map(str, differ))}",
            op="migrate",
            ranks=differ,
        )
