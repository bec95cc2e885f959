"""Dispatch and combine for mixture-of-experts layers: `ExpertParallel`, its results and its planner.

Thin: names, shapes, defaults and documentation; the work is in csrc/moe/. The protocol is that of XCCL
(arXiv:2508.02520, section 3.2), the vocabulary that of DeepEP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xccl import _core
from xccl.arguments import deadline, slots_by_rank, whole, whole_numbers
from xccl.array import Array, as_array, as_dtype
from xccl.communicator import Communicator
from xccl.errors import InvalidArgument
from xccl.pending import Pending

Routing = _core.Routing

_NO_TAG = -1


class ExpertParallel:
    """The experts of one or more MoE layers, spread over the ranks of a communicator.

    Making one is collective: all ranks do so with the same arguments (Mismatch names the first that differs). Rank r
    hosts a contiguous block of experts; where they do not divide, the first ranks host one more; or as `placement`
    says. Ranks without experts, tokens without experts (-1) and ranks without tokens are all normal. Then every rank
    makes the same sequence of dispatch and combine calls. One object serves any number of layers of the same shape.

    Results are bit for bit the same whatever the number of ranks, the placement, the arrival order and the instruction
    set: in top-k order, acc = round32(w * row) for the first expert, then acc = round32(acc + round32(w * row)); no
    fused multiply-add, and one rounding to nearest even to `dtype` at the end; NaN is canonical, denormals are kept.
    With `combine_quant` row is round32(scale * code).

    Args:
        comm: the communicator, which may be used for other things as well.
        num_experts: experts in total, over all ranks.
        hidden: elements of a row; any number.
        max_tokens: the most tokens any rank dispatches in one call. Address space is reserved for the worst case,
            every token to one rank; memory is taken for what happens. See `plan`.
        topk: experts per token.
        dtype: of rows: "float32", "float16" or "bfloat16".
        results: how many results of dispatch may be alive at once.
        dispatch_quant: how dispatch moves rows. None: as they are. "int8": a byte an element, and a float32 scale for
            each row. "fp8_e4m3": a float8_e4m3fn an element, and a float32 scale for each 128 elements of a row, of
            which the last may be fewer. Then `d.x` has these codes and `d.scales` their scales; x is quantised once per
            token, when it is staged. docs/quantisation.md has rounding, special values and a bound of the error.
        combine_quant: the same for the results, which combine quantises before they move; in its sum each row is
            round32(scale * code).
        combine_dtype: None or `dtype`; other types of sums are planned and raise InvalidArgument.
        layout: of d.x. "expert": one row per (token, expert), expert by expert, ready for a grouped GEMM. "token": each
            token once, and in `d.index` which of them each expert wants: a quarter of the bytes and less, for kernels
            that gather. Results go back expert by expert in both.
        placement: for each rank the experts in its slots, -1 for an empty one: any number of slots, the same expert in
            several. Those are replicas, which take turns: source rank r sends token t to replica (r + t) mod their
            number. The number of slots of a rank never changes; leave empty ones for replicas to come.
        shared_experts: ids, among num_experts, of experts that get every token besides those in topk_idx, on the
            token's own rank if they have a replica there. They come after the topk in sums, in this order. Their weight
            is 1, unless weights have topk + len(shared_experts) columns.
        token_ranks: 0: every rank has tokens and experts. n: the first n ranks have tokens and no experts, the others
            experts and no tokens, and records go between the two only. See `DisaggregatedExperts`.
        timeout: of the making, in seconds; the communicator's if not given.

    Raises:
        InvalidArgument, Mismatch, OutOfMemory (address space or memory; the message says what to change): `comm` stays
            usable, unless the others are in another call.
        Timeout, PeerLost, PeerFailed, Closed: as of any collective, they end `comm`.
    """

    def __init__(
        self,
        comm: Communicator,
        num_experts: int,
        hidden: int,
        max_tokens: int,
        topk: int,
        dtype: Any = "bfloat16",
        dispatch_quant: str | None = None,
        combine_quant: str | None = None,
        combine_dtype: Any = None,
        layout: str = "expert",
        results: int = 2,
        *,
        placement: Sequence[Sequence[int]] | None = None,
        shared_experts: Sequence[int] = (),
        token_ranks: int = 0,
        timeout: float | None = None,
    ) -> None:
        if not isinstance(comm, Communicator):
            raise InvalidArgument(f"comm is a {type(comm).__name__}: expected an xccl.Communicator")
        self._dtype = row_dtype(dtype)
        _refuse_planned(self._dtype, combine_dtype)
        self.num_experts = whole("num_experts", num_experts)
        self.hidden = whole("hidden", hidden)
        self.max_tokens = whole("max_tokens", max_tokens)
        self.topk = whole("topk", topk)
        self.shared_experts = whole_numbers("shared_experts", shared_experts)
        self._native = _core.ExpertParallel(
            comm=comm._native,
            num_experts=self.num_experts,
            hidden=self.hidden,
            max_tokens=self.max_tokens,
            topk=self.topk,
            dtype=self._dtype.name,
            np_dtype=self._dtype,
            layout=_layout(layout),
            results=whole("results", results),
            dispatch_quant=_quant("dispatch_quant", dispatch_quant),
            combine_quant=_quant("combine_quant", combine_quant),
            placement=None if placement is None else _placement(placement, comm.size),
            shared_experts=self.shared_experts,
            token_ranks=whole("token_ranks", token_ranks),
            timeout=deadline(timeout),
        )
        self.layout = layout
        self.dispatch_quant = dispatch_quant
        self.combine_quant = combine_quant
        self.comm = comm
        comm._dependents.add(self)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that dispatch and combine are given, and of sums."""
        return self._dtype

    @property
    def local_experts(self) -> list[int]:
        """Global ids of the experts in this rank's slots, -1 for an empty one, in the order of `d.counts`."""
        return self._native.local_experts

    @property
    def placement(self) -> list[list[int]]:
        """For each rank the experts in its slots, -1 for an empty one."""
        return self._native.placement

    def set_placement(self, placement: Sequence[Sequence[int]], timeout: float | None = None) -> None:
        """From the next dispatch on, experts are where `placement` says. Collective; one synchronisation.

        Every rank keeps the slots that it has; what is in them changes. Weights are not moved: see `xccl.eplb.migrate`.
        Results of earlier dispatches can still be combined, to the same bits. Their routings cannot be used for another
        dispatch, which would be an InvalidArgument there, unless nothing has changed.

        Raises:
            InvalidArgument: other slots, an expert that there is not, or one that is nowhere; nothing was sent.
            Mismatch: other ranks give another placement, or are in another call. Otherwise as `dispatch`.
        """
        slots = _placement(placement, self.comm.size)
        for rank, (mine, now) in enumerate(zip(slots, self.placement, strict=True)):
            if len(mine) != len(now):
                raise InvalidArgument(
                    f"placement has {len(mine)} slots for rank {rank}: expected {len(now)}, as when this was made; "
                    "-1 stands for an empty one"
                )
        self._native.set_placement(slots, deadline(timeout))

    def expert_load(self, reset: bool = False) -> np.ndarray[Any, Any]:
        """(num_experts,) int64: how many tokens this rank has dispatched to each expert, replicas taken together.

        Since this was made, or since the last call with `reset`. Dispatches with `routing=` do not count. It costs next
        to nothing, and is not collective: `comm.all_reduce(ep.expert_load())` is the load of all ranks.
        """
        return self._native.expert_load(bool(reset))

    def input_buffer(self, n: int, timeout: float | None = None) -> Array:
        """An array (n, hidden) to write tokens into; `dispatch` of it, or of its first rows, copies nothing first.

        With `dispatch_quant` there is nothing to gain: rows are quantised, that is staged, wherever they lie.

        Two buffers are used in turn, so one is valid until the next but one call of input_buffer. It waits, rarely,
        until all ranks have pulled what was last dispatched from it. Raises InvalidArgument if n exceeds max_tokens.
        """
        return self._native.input_buffer(whole("n", n), deadline(timeout)).view(Array)

    def dispatch(
        self,
        x: Any,
        topk_idx: Any = None,
        topk_weights: Any = None,
        *,
        routing: Routing | None = None,
        tag: int | None = None,
        timeout: float | None = None,
    ) -> Dispatched:
        """Sends every token to the ranks of its experts. Collective; one synchronisation.

        Args:
            x: (tokens, hidden), dtype of this object, C-contiguous; 0 to max_tokens tokens, any number on each rank.
                Free to be overwritten on return, unless it is an `input_buffer`.
            topk_idx: (tokens, topk) int32 or int64; expert ids, -1 for none. An expert may be named twice.
            topk_weights: (tokens, topk) float32; with shared experts perhaps (tokens, topk + their number).
            routing: instead of the two: `d.routing` of an earlier dispatch here, for tokens that go the same way
                again, such as gradients. All ranks give the routing of the same dispatch, or none.
            tag: 0 to 2**31 - 1: what this is for, a layer say. Ranks that give none learn it from the others (`d.tag`).

        Raises:
            InvalidArgument: nothing was sent; correct the argument and call again.
            OutOfMemory: as many results are alive as `results`, or memory is short; nothing was sent. Only if it is the
                rows received that do not fit, the communicator refuses further use.
            Mismatch: other ranks are in another call, or give another tag. Timeout, PeerLost, PeerFailed, Closed: see
                `ranks`.
        """
        arguments = self._dispatch_arguments(x, topk_idx, topk_weights, routing, tag)
        return Dispatched(self, self._native.dispatch(*arguments, deadline(timeout)))

    def dispatch_async(
        self,
        x: Any,
        topk_idx: Any = None,
        topk_weights: Any = None,
        *,
        routing: Routing | None = None,
        tag: int | None = None,
        timeout: float | None = None,
    ) -> Pending[Dispatched]:
        """The first half of `dispatch`: publishes what others need of this rank, and waits for nobody's.

        `wait()` of what it returns gives what dispatch gives: it waits for the others' halves and pulls. In between the
        others can pull from here, and this rank may compute, send messages, and use other objects, another
        ExpertParallel among them; this one takes no other call until it has been waited for (InvalidArgument). x must
        stay as it is until then.

        Args and errors as of `dispatch`; `timeout` is of this half, which waits, rarely, for memory that is still read.
        """
        arguments = self._dispatch_arguments(x, topk_idx, topk_weights, routing, tag)
        self._native.start_dispatch(*arguments, deadline(timeout))
        return Pending(
            "dispatch",
            self._native,
            lambda timeout: Dispatched(self, self._native.finish_dispatch(timeout)),
            arguments,
        )

    def combine(
        self,
        rows: Any,
        d: Dispatched,
        *,
        weights: Any = None,
        out: np.ndarray[Any, Any] | None = None,
        timeout: float | None = None,
    ) -> np.ndarray[Any, Any]:
        """Brings the experts' results back and sums them, weighted, per token. Collective; one synchronisation.

        Args:
            rows: (d.num_rows, hidden), dtype of this object: the result for each (token, expert), expert by expert.
                `d.output_buffer()` and, in layout "expert" and if it is not quantised, `d.x` itself are not copied;
                other ranks may read those until the next dispatch, combine or `d.output_buffer()` here returns, so
                write to them again only after that. With `combine_quant` rows are quantised wherever they lie, and
                free on return.
            d: the result of the dispatch. It stays valid, so it can be combined again.
            weights: instead of those given to dispatch, of the same shape.
            out: (tokens, hidden) array for the sums, instead of a new one.

        Returns (tokens, hidden) in the order of the tokens given to dispatch; zeros for a token with no expert.

        Raises: as `dispatch`.
        """
        arguments = self._combine_arguments(rows, d, weights, out)
        self._native.combine(*arguments, deadline(timeout))
        return arguments[-1]

    def combine_async(
        self,
        rows: Any,
        d: Dispatched,
        *,
        weights: Any = None,
        out: np.ndarray[Any, Any] | None = None,
        timeout: float | None = None,
    ) -> Pending[np.ndarray[Any, Any]]:
        """The first half of `combine`: publishes the experts' results, and waits for nobody's.

        `wait()` of what it returns gives the sums. Otherwise as `dispatch_async`; rows, weights and out must stay as
        they are until then. d may be released before.
        """
        arguments = self._combine_arguments(rows, d, weights, out)
        self._native.start_combine(*arguments, deadline(timeout))

        def finish(timeout: float) -> np.ndarray[Any, Any]:
            self._native.finish_combine(timeout)
            return arguments[-1]

        return Pending("combine", self._native, finish, arguments)

    def _dispatch_arguments(
        self, x: Any, topk_idx: Any, topk_weights: Any, routing: Routing | None, tag: int | None
    ) -> tuple[Any, Any, Any, Routing | None, int]:
        rows = as_array("x", x)
        if (routing is None) != (topk_idx is not None and topk_weights is not None) or (
            routing is not None and not (topk_idx is None and topk_weights is None)
        ):
            raise InvalidArgument("dispatch takes either topk_idx and topk_weights, or routing=")
        if not (routing is None or isinstance(routing, Routing)):
            raise InvalidArgument(
                f"routing is a {type(routing).__name__}: expected d.routing of an earlier dispatch"
            )
        return (
            rows,
            None if topk_idx is None else expert_ids(topk_idx),
            None if topk_weights is None else self._weights("topk_weights", topk_weights),
            routing,
            _NO_TAG if tag is None else whole("tag", tag, 0),
        )

    def _combine_arguments(
        self, rows: Any, d: Dispatched, weights: Any, out: np.ndarray[Any, Any] | None
    ) -> tuple[Any, _core.Dispatched, Any, np.ndarray[Any, Any]]:
        if not isinstance(d, Dispatched):
            raise InvalidArgument(f"d is a {type(d).__name__}: expected the result of a dispatch")
        if out is None:
            out = np.empty((d.routing.num_tokens, self.hidden), self._dtype).view(Array)
        elif not isinstance(out, np.ndarray):
            raise InvalidArgument(f"out is a {type(out).__name__}: expected a numpy array")
        given = None if weights is None else self._weights("weights", weights)
        return as_array("rows", rows), d._native, given, out

    def _weights(self, name: str, weights: Any) -> np.ndarray[Any, Any]:
        """As the core takes them: shared experts have a column each, of ones if it is missing."""
        found = as_array(name, weights)
        if not self.shared_experts or found.ndim != 2 or found.shape[1] != self.topk:
            return found
        return np.concatenate([found, np.ones((len(found), len(self.shared_experts)), np.float32)], 1)

    def close(self) -> None:
        """Gives this rank's buffers back. Not collective; safe to call twice; results stay readable.

        Waits, at most for the communicator's timeout, until no rank still pulls from here.
        """
        self._native.close()

    def __enter__(self) -> ExpertParallel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<xccl.ExpertParallel {self.num_experts} experts, hidden {self.hidden}, max_tokens {self.max_tokens}, "
            f"topk {self.topk}, {self._dtype.name}, {self.comm.size} ranks>"
        )

    @staticmethod
    def plan(
        size: int,
        num_experts: int,
        hidden: int,
        max_tokens: int,
        topk: int,
        dtype: Any = "bfloat16",
        results: int = 2,
        layout: str = "expert",
        dispatch_quant: str | None = None,
        combine_quant: str | None = None,
        *,
        placement: Sequence[Sequence[int]] | None = None,
        shared_experts: Sequence[int] = (),
        rank: int = 0,
        tokens: int | None = None,
        rows: int | None = None,
        in_place: bool = False,
    ) -> Plan:
        """What an ExpertParallel of this shape takes on one rank of `size`; nothing is allocated. Print it.

        Args:
            dispatch_quant, combine_quant: as of the object. A dispatch that quantises is planned for without input
                buffers, which it has no use for.
            tokens: dispatched by this rank per call, for the memory figure; max_tokens if not given.
            rows: received per call at the most; an even spread of that many tokens per rank if not given.
            in_place: combine is always given d.x itself, so that output buffers are never used. Not with
                `dispatch_quant`, whose d.x has codes.
        """
        rank = whole("rank", rank, 0, whole("size", size, 1) - 1)
        shape = {
            "num_experts": num_experts,
            "hidden": hidden,
            "max_tokens": max_tokens,
            "topk": topk,
            "results": results,
        }
        num_experts, hidden, max_tokens, topk, results = (
            whole(name, value, 1) for name, value in shape.items()
        )
        tokens = max_tokens if tokens is None else whole("tokens", tokens, 0, max_tokens)
        if rows is not None:
            rows = whole("rows", rows, 0, size * max_tokens * (topk + len(shared_experts)))
        name = row_dtype(dtype).name
        rows, lines = _core.plan(
            num_experts,
            hidden,
            max_tokens,
            topk,
            name,
            _layout(layout),
            results,
            _quant("dispatch_quant", dispatch_quant),
            _quant("combine_quant", combine_quant),
            None if placement is None else _placement(placement, size),
            whole_numbers("shared_experts", shared_experts),
            size,
            rank,
            tokens,
            rows,
            in_place,
        )
        title = (
            f"ExpertParallel on rank {rank} of {size}: {num_experts} experts, hidden {hidden}, {name}, max_tokens "
            f"{max_tokens}, topk {topk}; {tokens} tokens dispatched and {rows} rows received per call"
        )
        return Plan(title, tuple(PlanLine(*line) for line in lines))


class Dispatched:
    """What `dispatch` returns: the rows this rank's experts work on, and where they came from.

    Rows are in the order (local expert, source rank, source token); in layout "token" d.x has each token once instead,
    in the order (source rank, source token), and everything else is still in the order of rows. What d.x lies in
    belongs to a pool: release() gives it back once no array over it is alive; so does dropping the object. `routing`
    is small and stays usable.
    """

    def __init__(self, ep: ExpertParallel, native: _core.Dispatched) -> None:
        self._ep = ep
        self._native = native
        self.routing: Routing = native.routing
        #: what this rank, or another, has said that the dispatch is for; None if nobody has
        self.tag: int | None = None if native.tag == _NO_TAG else native.tag

    @property
    def x(self) -> Array:
        """(num_rows, hidden): the rows; writable, so experts may work in place. In layout "token": (tokens, hidden).

        Of the object's dtype; with `dispatch_quant` codes, int8 or ml_dtypes.float8_e4m3fn: see `scales`.
        """
        return self._native.rows().view(Array)

    @property
    def scales(self) -> Array | None:
        """float32, of the rows of `x`: (rows,) for "int8", (rows, ceil(hidden / 128)) for "fp8_e4m3"; else None.

        An element stands for scale * code. NaN where the row, or that block of it, had a NaN or an infinity.
        """
        scales = self._native.scales()
        return None if scales is None else scales.view(Array)

    @cached_property
    def counts(self) -> np.ndarray[Any, Any]:
        """(local experts,) int64: rows of each expert."""
        return self.routing.counts

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return self.routing.num_rows

    @property
    def src_rank(self) -> np.ndarray[Any, Any]:
        """(num_rows,) int32: the rank each row came from."""
        return self.routing.src_rank

    @property
    def src_token(self) -> np.ndarray[Any, Any]:
        """(num_rows,) int32: its token there."""
        return self.routing.src_token

    @cached_property
    def index(self) -> np.ndarray[Any, Any]:
        """(num_rows,) int32: where the token of each row lies in d.x; d.x[d.index] is expert-major in any layout."""
        return (
            self.routing.token_row if self._ep.layout == "token" else np.arange(self.num_rows, dtype=np.int32)
        )

    @property
    def weights(self) -> np.ndarray[Any, Any]:
        """(num_rows,) float32: the weight of that expert for that token."""
        return self.routing.weights

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *np.cumsum(self.counts).tolist()]

    def rows_of(self, i: int) -> slice:
        """The rows of the i-th local expert, as a slice of everything that has num_rows entries."""
        i = whole("i", i, 0, len(self.counts) - 1)
        return slice(self._starts[i], self._starts[i + 1])

    def expert(self, i: int) -> Array:
        """(counts[i], hidden): the rows of the i-th local expert: a view of d.x; in layout "token" a copy.

        Their scales, if they are quantised: `d.scales[d.index[d.rows_of(i)]]`.
        """
        rows = self.rows_of(i)
        return self.x[self.index[rows] if self._ep.layout == "token" else rows].view(Array)

    def output_buffer(self, timeout: float | None = None) -> Array:
        """(num_rows, hidden) to write the experts' results into, which combine then does not copy.

        Waits, rarely, until all ranks have pulled an earlier combine of this result.
        """
        return self._ep._native.output_buffer(self._native, deadline(timeout)).view(Array)

    def release(self) -> None:
        """Gives the rows back to the pool as soon as no array over them is alive. Safe to call twice."""
        self._native.release()

    def __enter__(self) -> Dispatched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = ", released" if self._native.released else ""
        return f"<xccl.Dispatched {self.num_rows} rows for {len(self.counts)} experts{state}>"


@dataclass(frozen=True)
class PlanLine:
    """One use of memory: bytes of memory in steady state, bytes of address space, what would make it smaller."""

    what: str
    committed: int
    reserved: int
    shrink: str


@dataclass(frozen=True)
class Plan:
    """Memory of an ExpertParallel and its communicator on one rank. `print(plan)` explains it."""

    title: str
    lines: tuple[PlanLine, ...]

    @property
    def committed(self) -> int:
        """Bytes of memory in steady state; `Communicator.committed_bytes` agrees, application arrays aside."""
        return sum(line.committed for line in self.lines)

    @property
    def reserved(self) -> int:
        """Bytes of address space; most of it never becomes memory."""
        return sum(line.reserved for line in self.lines)

    def __str__(self) -> str:
        return "\n".join([self.title, *self._table()])

    def _table(self) -> Iterator[str]:
        width = max(len(line.what) for line in self.lines)
        yield f"  {'':{width}}  {'memory':>10}  {'reserved':>10}  smaller with"
        for line in self.lines:
            yield f"  {line.what:{width}}  {_size(line.committed):>10}  {_size(line.reserved):>10}  {line.shrink}"
        yield f"  {'in all':{width}}  {_size(self.committed):>10}  {_size(self.reserved):>10}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def row_dtype(dtype: Any) -> np.dtype[Any]:
    found = as_dtype(dtype)
    if found.name not in ("float32", "float16", "bfloat16") or not found.isnative:
        raise InvalidArgument(
            f"dtype={dtype!r}: expected float32, float16 or bfloat16, in this machine's byte order"
        )
    return found


def expert_ids(topk_idx: Any) -> np.ndarray[Any, Any]:
    ids = as_array("topk_idx", topk_idx)
    if ids.dtype not in (np.int32, np.int64):
        raise InvalidArgument(f"topk_idx has dtype {ids.dtype}: expected int32 or int64")
    return ids


def _placement(placement: Any, ranks: int) -> list[list[int]]:
    slots = slots_by_rank("placement", placement)
    if len(slots) != ranks:
        raise InvalidArgument(f"placement has slots for {len(slots)} ranks: expected {ranks}")
    return slots


def _layout(layout: object) -> str:
    if layout not in ("expert", "token"):
        raise InvalidArgument(f'layout={layout!r}: expected "expert" or "token"')
    return str(layout)


def _quant(name: str, value: object) -> str | None:
    if value not in (None, "int8", "fp8_e4m3"):
        raise InvalidArgument(f'{name}={value!r}: expected None, "int8" or "fp8_e4m3"')
    return None if value is None else str(value)


def _refuse_planned(dtype: np.dtype[Any], combine_dtype: object) -> None:
    if combine_dtype is not None and as_dtype(combine_dtype, "combine_dtype") != dtype:
        raise InvalidArgument(
            f"combine_dtype={combine_dtype!r}: expected None or {dtype.name} in this version"
        )
