"""The collectives of a communicator, as methods that `Communicator` inherits.

All ranks make the same calls in the same order. Not here: barrier, and the life of a communicator
(communicator.py); dispatch and combine (expert_parallel.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xccl import _core
from xccl.arguments import deadline, refuse_objects, whole
from xccl.array import Array, as_array
from xccl.errors import InvalidArgument

_Array = np.ndarray[Any, Any]


class Collectives:
    """What all ranks of a communicator do together.

    Inputs are anything with DLPack, `__array_interface__` or the buffer protocol; one that is not C-contiguous and
    aligned is copied. Results are new arrays, or `out`: a writable, aligned, C-contiguous numpy array of the result's
    shape and dtype, apart from the input. Ranks that disagree about a call get `Mismatch`, each naming the argument,
    both values and `ranks`; the communicator then refuses further use. Other errors: Timeout, PeerLost, PeerFailed,
    Closed, OutOfMemory, and InvalidArgument, before anything is sent.

    All are pulls with one synchronisation per round: each rank writes what others need into its scratch memory
    (up to 24 bytes ride in the record that says so), tells every other rank, and copies from each. What one rank
    has for all others goes in pieces of 512 KiB (with more than 32 ranks: 16 KiB for each), a round for each.

    all_to_all, all_gather and broadcast of 256 KiB and more that lie in the application area (`comm.empty`) are not
    copied there first: the others pull them from where they lie, all in one round where all ranks (broadcast: the
    root) have theirs so, and a second synchronisation tells when all have.
    """

    _native: _core.Communicator

    def all_gather(self, a: Any, out: _Array | None = None, timeout: float | None = None) -> _Array:
        """Every rank's `a`, stacked: an array of shape (size, *a.shape), the same on all ranks.

        `a` has as many bytes on every rank. Each rank writes its share once and pulls from each other. `a` may
        be this rank's own place in `out`.
        """
        mine = _input("a", a)
        out = _output(out, (self._native.size, *mine.shape), mine.dtype)
        self._native.all_gather(mine, out, deadline(timeout))
        return out

    def all_gather_v(
        self, a: Any, out: _Array | None = None, timeout: float | None = None
    ) -> tuple[_Array, _Array]:
        """The rows of every rank's `a`, in rank order, and how many came from each: (rows, counts).

        The leading dimension of `a` counts rows; it may differ between ranks and be 0. The others, and the
        dtype, give the same number of bytes on all ranks. counts: int64, shape (size,). With `out`, whose rows
        must be at least as many as come, `rows` is its beginning; else Truncated, naming both numbers, which
        leaves the communicator usable.
        """
        mine = _rows(a)
        room = _room(out, mine)
        rows, counts = self._native.all_gather_v(mine, room, deadline(timeout))
        return _filled(rows, counts)

    def all_to_all(self, a: Any, out: _Array | None = None, timeout: float | None = None) -> _Array:
        """Part r of `a` goes to rank r: an array of the same shape, whose part r is what rank r had for this rank.

        `a` has shape (size, ...), and as many bytes on every rank. Each rank writes the parts of the others and
        pulls from each, whatever the size and the number of ranks.
        """
        mine = _input("a", a)
        size = self._native.size
        if mine.ndim == 0 or mine.shape[0] != size:
            raise InvalidArgument(f"a has shape {mine.shape}: expected ({size}, ...), one part for each rank")
        out = _output(out, mine.shape, mine.dtype)
        self._native.all_to_all(mine, out, deadline(timeout))
        return out

    def all_to_all_v(
        self,
        a: Any,
        send_counts: Sequence[int] | _Array,
        out: _Array | None = None,
        timeout: float | None = None,
    ) -> tuple[_Array, _Array]:
        """The first send_counts[0] rows of `a` go to rank 0, the next send_counts[1] to rank 1, and so on.

        Returns (rows, recv_counts): the rows that came, in rank order, and how many from each (int64, shape
        (size,)). Any count may be 0. The dimensions after the first, and the dtype, give the same number of
        bytes on all ranks. `out` as in all_gather_v. An even share of what each rank sends goes in each round.
        """
        mine = _rows(a)
        counts = _counts("send_counts", send_counts, self._native.size, len(mine))
        room = _room(out, mine)
        rows, received = self._native.all_to_all_v(mine, counts, room, deadline(timeout))
        return _filled(rows, received)

    def broadcast(
        self, a: Any, root: int = 0, out: _Array | None = None, timeout: float | None = None
    ) -> _Array:
        """The array of rank `root`, on all ranks.

        Without `out` it replaces the contents of `a`, which is returned: a writable C-contiguous array on every
        rank. With `out`, of the shape and dtype of `a`, `a` is only read. As many bytes, and the same root, on
        every rank. The root writes its array once, however many ranks there are, and the others pull it.
        """
        whole_root = whole("root", root, 0, self._native.size - 1)
        if out is None:
            data = as_array("a", a)
            refuse_objects("a", data.dtype)
            if not data.flags.c_contiguous or not data.flags.writeable:
                wrong = "read-only" if data.flags.c_contiguous else "not C-contiguous"
                raise InvalidArgument(f"a is {wrong}: it is written to; give out=, or pass a copy")
        else:
            mine = _input("a", a)
            data = _output(out, mine.shape, mine.dtype)
            if self._native.rank == whole_root:
                data[...] = mine
        self._native.broadcast(data, whole_root, deadline(timeout))
        return data

    def all_reduce(
        self, a: Any, op: str = "sum", out: _Array | None = None, timeout: float | None = None
    ) -> _Array:
        """The sum, or with op="max" the largest, of every rank's `a`, element by element; the same bits on all ranks.

        `a` has the same shape on every rank; float32, float16, bfloat16 or int64. Floats are added in rank
        order in float32, each step rounded, and rounded to the dtype once, at the end; int64 wraps around. max:
        NaN if any is NaN, +0 above -0. `out` may be `a`.

        Up to 8 KiB, or with two ranks, every rank pulls all of it and reduces it: one synchronisation. Otherwise
        every rank reduces a share, and pulls the shares of the others: two. The bits are the same.
        """
        mine = _input("a", a)
        dtype = _reducible(mine, op)
        out = _output(out, mine.shape, mine.dtype)
        self._native.all_reduce(mine, out, dtype, op, deadline(timeout))
        return out

    def reduce_scatter(
        self, a: Any, op: str = "sum", out: _Array | None = None, timeout: float | None = None
    ) -> _Array:
        """Part r of the sum (or op="max") of every rank's `a`, on rank r: an array of shape a.shape[1:].

        `a` has shape (size, ...), the same on every rank. Arithmetic and dtypes as in all_reduce. Each rank
        writes the parts of the others and reduces its own, whatever the size and the number of ranks.
        """
        mine = _input("a", a)
        size = self._native.size
        if mine.ndim == 0 or mine.shape[0] != size:
            raise InvalidArgument(f"a has shape {mine.shape}: expected ({size}, ...), one part for each rank")
        dtype = _reducible(mine, op)
        out = _output(out, mine.shape[1:], mine.dtype)
        self._native.reduce_scatter(mine, out, dtype, op, deadline(timeout))
        return out

    def reduce_scatter_v(
        self,
        a: Any,
        counts: Sequence[int] | _Array,
        op: str = "sum",
        out: _Array | None = None,
        timeout: float | None = None,
    ) -> _Array:
        """As reduce_scatter, with counts[r] rows for rank r: an array of shape (counts[rank], *a.shape[1:]).

        `a` has sum(counts) rows. `counts`, and the elements of a row, are as many on every rank; any count may be 0.
        """
        mine = _rows(a)
        rows = _counts("counts", counts, self._native.size, len(mine))
        dtype = _reducible(mine, op)
        out = _output(out, (int(rows[self._native.rank]), *mine.shape[1:]), mine.dtype)
        self._native.reduce_scatter_v(mine, out, rows, dtype, op, deadline(timeout))
        return out


def _input(name: str, value: Any) -> _Array:
    given = as_array(name, value)
    refuse_objects(name, given.dtype)
    return given if given.flags.c_contiguous and given.flags.aligned else np.array(given, order="C")


def _rows(value: Any) -> _Array:
    rows = _input("a", value)
    if rows.ndim == 0:
        raise InvalidArgument("a has no dimensions: expected rows, which its leading dimension counts")
    return rows


def _reducible(array: _Array, op: str) -> str:
    if op not in ("sum", "max"):
        raise InvalidArgument(f'op={op!r}: expected "sum" or "max"')
    name: str = array.dtype.name
    if name not in ("float32", "float16", "bfloat16", "int64") or not array.dtype.isnative:
        raise InvalidArgument(f"a has dtype {array.dtype}: expected float32, float16, bfloat16 or int64")
    return name


def _counts(name: str, value: Sequence[int] | _Array, size: int, rows: int) -> _Array:
    given = np.asarray(value) if isinstance(value, (list, tuple)) else as_array(name, value)
    if given.dtype.kind not in "iu" or given.shape != (size,):
        raise InvalidArgument(
            f"{name} has shape {given.shape} and dtype {given.dtype}: expected ({size},) whole numbers, one "
            "for each rank"
        )
    if (given < 0).any():
        raise InvalidArgument(f"{name}={given.tolist()}: expected no negative numbers")
    total = sum(given.tolist())
    if total != rows:
        raise InvalidArgument(f"{name} add up to {total}: expected {rows}, the rows of a")
    return np.ascontiguousarray(given, np.uint64)


def _check_output(out: _Array, fits: bool, shape: tuple[Any, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise InvalidArgument(f"out is a {type(out).__name__}: expected a numpy array")
    flags = out.flags
    if not (fits and out.dtype == dtype and flags.carray):
        wrong = {
            "read-only": flags.writeable,
            "not C-contiguous": flags.c_contiguous,
            "misaligned": flags.aligned,
        }
        described = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise InvalidArgument(
            f"out has shape {out.shape} and dtype {out.dtype}"
            f"{''.join(f', and is {what}' for what, fine in wrong.items() if not fine)}: "
            f"expected a writable C-contiguous array, aligned, of shape {described} and dtype {dtype}"
        )


def _output(out: _Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Array:
    if out is None:
        return np.empty(shape, dtype).view(Array)
    _check_output(out, getattr(out, "shape", None) == shape, shape, dtype)
    return out


def _room(out: _Array | None, rows: _Array) -> _Array | None:
    """`out` of a call that learns only later how many rows come."""
    if out is not None:
        fits = getattr(out, "ndim", 0) == rows.ndim and out.shape[1:] == rows.shape[1:]
        _check_output(out, fits, ("n", *rows.shape[1:]), rows.dtype)
    return out


def _filled(rows: _Array, counts: _Array) -> tuple[_Array, _Array]:
    counts = counts.astype(np.int64)
    found = rows[: int(counts.sum())]
    return (found if isinstance(found, Array) else found.view(Array)), counts
