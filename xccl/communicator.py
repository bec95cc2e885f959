"""`xccl.init` and `Communicator`: joining a job, the application area, the life of a communicator.

Not here: its collectives (collectives.py); send, recv and their kin, methods of the native base class
(csrc/python/hot.cpp); who this process is (launch/environment.py), dispatch and combine (expert_parallel.py).
"""

from __future__ import annotations

import atexit
import os
import sys
import uuid
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from xccl import _core
from xccl.arguments import deadline, dimensions, positive_seconds, refuse_objects, whole
from xccl.array import Array, as_dtype
from xccl.collectives import Collectives
from xccl.errors import InvalidArgument
from xccl.launch.environment import check_single_host, detect
from xccl.wait_stats import WaitStats

_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def init(
    rank: int | None = None,
    size: int | None = None,
    job: str | None = None,
    timeout: float | None = None,
    provider: str | None = None,
    startup_timeout: float | None = None,
    progress_thread: bool | None = None,
) -> Communicator:
    """Joins a job and returns its communicator, once all of its ranks have arrived.

    Without arguments, rank, size and job come from the launcher: `python -m xccl run`, torchrun, mpirun (Open MPI,
    MPICH, Intel MPI) or srun. A program started by none of them is a job of one rank.

    Args:
        rank, size: this process and how many there are; both or neither.
        job: a name that all ranks of the job, and no other job on this host, use. Needed with `rank` and `size`.
        timeout: default deadline of every call, in seconds; else XCCL_TIMEOUT, else 30.
        provider: "posix_shm" (processes of one host) or "local" (threads of one process); else XCCL_PROVIDER.
        startup_timeout: deadline for all ranks to arrive, in seconds; else XCCL_STARTUP_TIMEOUT, else 120.
        progress_thread: whether a thread of this rank goes on with what has been started (isend, irecv, dispatch_async,
            combine_async) while Python computes, for hosts with cores to spare; else XCCL_PROGRESS_THREAD, else False.
            Each rank for itself. docs/overlap.md

    Raises:
        InvalidArgument: an argument or an environment variable is wrong, the job's name is taken, or the file that
            XCCL_TRACE names cannot be written.
        Timeout: `ranks` did not arrive. PeerLost: one died meanwhile. Mismatch: ranks disagree about the size.
        OutOfMemory: not even the control segment can be had.
    """
    if not (provider is None or isinstance(provider, str)):
        raise InvalidArgument(f"provider={provider!r}: expected the name of a provider")
    if not (progress_thread is None or isinstance(progress_thread, bool)):
        raise InvalidArgument(f"progress_thread={progress_thread!r}: expected True or False")
    _warn_of_unknown_settings()
    who = _identity(rank, size, job)
    native = _core.Communicator.init(
        job=who.job,
        rank=who.rank,
        size=who.size,
        numbered=who.numbered,
        provider=provider,
        timeout=None if timeout is None else positive_seconds("timeout", timeout),
        startup_timeout=None
        if startup_timeout is None
        else positive_seconds("startup_timeout", startup_timeout),
        progress_thread=progress_thread,
    )
    return Communicator(native)


class _Identity(NamedTuple):
    job: str
    rank: int
    size: int
    numbered: bool = False  # the name is the launcher's: the core adds which join of the program this is


def _identity(rank: int | None, size: int | None, job: str | None) -> _Identity:
    if not (job is None or isinstance(job, str)):
        raise InvalidArgument(f"job={job!r}: expected a text")
    if job is not None and not job.isprintable():
        raise InvalidArgument(f"job={job!r}: expected printable characters")
    if (rank is None) != (size is None):
        raise InvalidArgument("rank= and size= belong together: give both, or neither under a launcher")
    if rank is not None and size is not None:
        if job is None and size > 1:
            raise InvalidArgument(
                "job= is missing: give a name that all ranks of this job, and no other job, use"
            )
        rank, size = whole("rank", rank), whole("size", size)
        return _Identity(job or f"alone-{uuid.uuid4()}", rank, size)
    info = detect()
    if info is None:
        return _Identity(job or f"alone-{uuid.uuid4()}", 0, 1)
    check_single_host(info)
    return _Identity(job or info.job, info.rank, info.size, numbered=not job)


_LAUNCH_VARIABLES = {"XCCL_RANK", "XCCL_SIZE", "XCCL_LOCAL_RANK", "XCCL_LOCAL_SIZE", "XCCL_JOB"}


def _warn_of_unknown_settings() -> None:
    known = _LAUNCH_VARIABLES | {name for name, *_ in _core.config()}
    unknown = sorted(name for name in os.environ if name.startswith("XCCL_") and name not in known)
    if unknown:
        warnings.warn(
            f"{', '.join(unknown)}: XCCL reads no such variable; `python -m xccl doctor` lists those it reads",
            stacklevel=3,
        )


class Communicator(_core.Messages, Collectives):
    """A group of ranks that can reach each other's memory. Made by `xccl.init`.

    One thread at a time may use it; different communicators may be used by different threads at the same time.
    Every blocking call but close() takes `timeout=` in seconds and raises `Timeout`, `PeerLost`, `PeerFailed` or
    `Closed` with the ranks concerned. After such an error inside a collective the communicator refuses further use
    with the first cause, until `shrink()` makes a new one of the ranks that are left. Use it in a `with` block: an
    exception that leaves the block is told to the other ranks.
    """

    def __init__(self, native: _core.Communicator) -> None:
        super().__init__(native)
        self._native = native
        self._dependents: weakref.WeakSet[Any] = weakref.WeakSet()
        self._parts: weakref.WeakSet[Communicator] = weakref.WeakSet()  # made of this one by split and shrink
        _open.add(self)

    @property
    def rank(self) -> int:
        """This rank, 0 to size - 1."""
        return self._native.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._native.size

    @property
    def provider(self) -> str:
        """Name of the global shared memory in use: "posix_shm" or "local"."""
        return self._native.provider

    @property
    def job(self) -> str:
        """Name of the job."""
        return self._native.job

    @property
    def timeout(self) -> float:
        """Default deadline of calls, in seconds."""
        return self._native.timeout

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._native.closed

    @property
    def committed_bytes(self) -> int:
        """Shared memory that this rank takes now, in bytes: arrays, buffers, records. Compare `ExpertParallel.plan`."""
        return self._native.committed_bytes

    def empty(self, shape: int | Sequence[int], dtype: Any = "float32") -> Array:
        """A new array in the application area, not cleared, which other ranks can reach. See `xccl.Array`.

        Raises OutOfMemory, naming the limit, when the memory cannot be had, rather than being killed later.
        """
        found = as_dtype(dtype)
        refuse_objects("dtype", found)
        return self._native.empty(dimensions("shape", shape), found).view(Array)

    def barrier(self, timeout: float | None = None) -> None:
        """Returns when all ranks have called it. A dissemination barrier: ceil(log2(size)) signals per rank."""
        self._native.barrier(deadline(timeout))

    def split(self, color: int, key: int = 0, timeout: float | None = None) -> Communicator | None:
        """A communicator of the ranks that give the same `color`, in the order of (key, rank), as MPI_Comm_split.

        Collective on this communicator. `color` is 0 or more; -1 puts this rank in no group and returns None. The new
        communicator has collectives, messages and ExpertParallel objects of its own, which go on at the same time as
        those of others. An error ends the communicator in which it happened, and no other. Errors name ranks by their
        number in the job. Close it like any other.
        """
        native = self._native.split(whole("color", color), whole("key", key), deadline(timeout))
        return None if native is None else self._part(native)

    def shrink(self, timeout: float | None = None) -> Communicator:
        """A communicator of the ranks that are left after some have died or failed, as ULFM's MPI_Comm_shrink.

        Collective on those that take part in this one: all but the ranks that have died, have closed it, or have
        aborted it (as an exception that leaves its `with` block does). A rank in which a call has failed, by `Timeout`
        say, still takes part. They keep their order, and all get the same ranks, whenever each has learnt of a death,
        and if others die meanwhile. The new communicator works at once; arrays made by `empty()` of this one are used
        there like its own. This one stays refused, and may be closed; if it had not failed, it stays usable, and the
        new one is a duplicate. Errors name ranks by their number in the job.

        Raises:
            Timeout: `ranks` have not come. Nothing has changed: call again; the others may, too.
            OutOfMemory: likewise.
            Closed: this rank has closed or aborted this communicator.
        A rank that dies late in this call may still be in the new communicator, whose next call raises `PeerLost`.
        """
        return self._part(self._native.shrink(deadline(timeout)))

    def _part(self, native: _core.Communicator) -> Communicator:
        made = Communicator(native)
        self._parts.add(made)
        return made

    def wait_stats(self) -> WaitStats:
        """Who waited for whom, of all ranks of this communicator, in calls on any communicator of the job.

        Since the job began, or a rank called `reset_wait_stats`. Not collective: it reads the other ranks' memory,
        without their help; so it does not wait, and also works once a rank has died or the communicator has ended.
        """
        return WaitStats(*self._native.wait_stats())

    def reset_wait_stats(self) -> None:
        """Begins this rank's row of `wait_stats` anew. Call it on all ranks, for example right after a barrier."""
        self._native.reset_wait_stats()

    def abort(self, reason: str) -> None:
        """Gives up: the other ranks raise `PeerFailed` with this reason, in the call under way or the next.

        This rank's own further calls are refused, and `shrink` of the others leaves it out. Of the reason, 504 bytes
        of UTF-8 are told. Sub-groups are communicators of their own, which this does not end. Where the communicator
        has failed before, the others know that cause, and this rank only leaves.
        """
        if not isinstance(reason, str):
            raise InvalidArgument(f"reason={reason!r}: expected a text")
        self._native.abort(reason.encode("utf-8", "replace").decode())

    def _abort_all(self, reason: str) -> None:
        # An exception ends the rank's part in all that was made of this communicator: others may wait for it in any.
        self.abort(reason)
        for part in list(self._parts):
            part._abort_all(reason)

    def close(self) -> None:
        """Ends this rank's part in an orderly way. Not collective; safe to call twice.

        It waits until no other rank still reads this rank's memory: at most for `timeout` for each ExpertParallel, for
        messages, and for collectives. Ranks that need this one afterwards get `Closed`. Arrays stay valid.

        Raises InvalidArgument while another thread is inside a call: some of it may be closed then; call it again.
        """
        for dependent in list(self._dependents):
            dependent.close()
        self._close_messages()
        self._native.close()
        _open.discard(self)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._abort_all(f"{kind.__name__}: {error}")
        finally:
            self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return (
            f"<xccl.Communicator rank {self.rank} of {self.size}, {self.provider}, job {self.job!r}{state}>"
        )


@atexit.register
def _leave_open_communicators() -> None:
    # A program that ends without close() has still ended in an orderly way, unless an exception ended it: then the
    # others learn which.
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    for comm in list(_open):
        if error is not None:
            comm.abort(f"{type(error).__name__}: {error}")
        comm.close()
