"""One rank's place in a round: its communicator, who else is in it, and the numbers that all of them draw alike.

Used by the operations. Not here: the order of the steps (schedule.py), and what follows a death (play.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import truth

import xccl

_Array = np.ndarray[Any, Any]
DTYPES = [np.uint8, np.int16, np.float32, np.int64, ml_dtypes.bfloat16]
# Around the ends of the paths of messages and collectives.
LENGTHS = [0, 1, 24, 25, 47, 48, 49, 64, 1000, 8191, 8192, 8193, 65_536, 262_143, 262_144, 600_001]
# A wrong result on purpose, to show that one is found: the name of an operation whose first result is changed.
SPOIL = "SOAK_SPOIL"


class Scene:
    """What an operation works with. `common` draws the same on all members, `own` is this rank's luck alone."""

    def __init__(self, comm: xccl.Communicator, seed: int, members: Sequence[int]) -> None:
        self.comm = comm
        self.seed = seed
        self.members = list(members)  # their ranks in the job
        self.counts: Counter[str] = Counter()
        self.kept: list[tuple[xccl.Array, _Array]] = []  # of comm.empty, and what is in them
        self.experts: tuple[xccl.ExpertParallel, truth.Shape] | None = None  # goes on to the next steps
        self.begin("", 0)

    @property
    def rank(self) -> int:
        """In the communicator, not in the job."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Of the communicator."""
        return self.comm.size

    @property
    def job_rank(self) -> int:
        """Under which errors name this rank."""
        return self.members[self.rank]

    def begin(self, name: str, *path: int) -> None:
        """The next operation. `path`: its step, and in a sub-group where in that."""
        self.name, self.path, self._keys = name, path, 0
        self.common = np.random.default_rng([self.seed, *path, 0])
        self.own = np.random.default_rng([self.seed, *path, 1, self.job_rank])
        if name:
            self.counts[name] += 1

    def part(self, comm: xccl.Communicator, members: Sequence[int]) -> Scene:
        """The same rank in a sub-group."""
        found = Scene(comm, self.seed, members)
        found.counts, found.kept = self.counts, self.kept
        return found

    # --- Data --------------------------------------------------------------------------------------------------

    def length(self, most: int = 2_000_000) -> int:
        """Bytes of a message or share, the same on all members."""
        if self.common.random() < 0.6:
            return int(min(self.common.choice(LENGTHS), most))
        return int(min(2 ** self.common.uniform(0, 21), most))

    def dtype(self) -> np.dtype[Any]:
        """Any, the same on all members."""
        return np.dtype(DTYPES[self.common.integers(len(DTYPES))])

    def content(self, member: int, key: int, shape: int | Sequence[int], dtype: Any = np.uint8) -> _Array:
        """What a member gives in this operation as its `key`-th array: any bits."""
        rng = np.random.default_rng([self.seed, *self.path, 2, self.members[member], key])
        kind = np.dtype(dtype)
        return np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape).copy()

    def room(self, shape: int | Sequence[int], dtype: Any = np.uint8) -> _Array:
        """An array to be filled, in the application area or not as luck has it; no old contents would do."""
        kind = np.dtype(dtype)
        found = self.comm.empty(shape, kind) if self.own.random() < 0.5 else np.empty(shape, kind)
        found.view(np.uint8)[...] = 0xA5 if found.nbytes else 0
        return found

    def placed(self, array: _Array) -> _Array:
        """The same numbers, in the application area or not."""
        if self.own.random() < 0.5:
            return array
        found = self.comm.empty(array.shape, array.dtype)
        found[...] = array
        return found

    def maybe_out(self, shape: Sequence[int], dtype: Any) -> _Array | None:
        """For `out=`: None, or an array."""
        return None if self.own.random() < 0.4 else self.room(shape, dtype)

    # --- Checks ------------------------------------------------------------------------------------------------

    def check(self, found: _Array, expected: _Array, what: str) -> None:
        """Every byte is the expected one."""
        found, expected = np.asarray(found), np.asarray(expected)
        if os.environ.get(SPOIL) == self.name and found.nbytes:
            found = found.copy()
            found.reshape(-1).view(np.uint8)[-1] ^= 1
        described = f"{what}: {found.dtype}{list(found.shape)}"
        assert found.shape == expected.shape, f"{described} has not the shape {list(expected.shape)}"
        assert found.dtype == expected.dtype, f"{described} has not the dtype {expected.dtype}"
        if found.tobytes() == expected.tobytes():
            return
        wrong = np.frombuffer(found.tobytes(), np.uint8) != np.frombuffer(expected.tobytes(), np.uint8)
        raise AssertionError(
            f"wrong result, {described}: {int(wrong.sum())} of {wrong.size} bytes differ, "
            f"the first at {int(wrong.argmax())}"
        )

    def check_members(self) -> None:
        """All are there, in this order."""
        found = self.comm.all_gather(np.array([self.job_rank]))
        self.check(found.ravel(), np.array(self.members), "members")


def expect(kind: type[xccl.Error], call: Callable[..., Any], *args: Any, **options: Any) -> xccl.Error:
    """The error that a call must raise. Another one, such as that of a death, goes its way."""
    try:
        call(*args, **options)
    except kind as error:
        return error.with_traceback(None)
    raise AssertionError(f"{getattr(call, '__name__', call)} did not raise {kind.__name__}")
