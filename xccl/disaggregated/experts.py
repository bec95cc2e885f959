"""`DisaggregatedExperts`: what users call. How rows go is in the lanes (lane.py, direct.py, trampoline.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xccl.arguments import whole
from xccl.communicator import Communicator
from xccl.disaggregated.agreement import require_agreement
from xccl.disaggregated.cost import Cost, Shape, choose
from xccl.disaggregated.direct import Direct
from xccl.disaggregated.lane import END, Batch, Counters, Lane
from xccl.disaggregated.server import Server
from xccl.disaggregated.trampoline import Trampoline
from xccl.errors import Closed, InvalidArgument
from xccl.expert_parallel import ExpertParallel, row_dtype


class DisaggregatedExperts:
    """Experts on other ranks than attention: the first `attention` ranks of `comm` have tokens, the others experts.

    Making one is collective. Then an attention rank calls `a2e` for each micro-batch, and later `e2a` for its sum; an
    expert rank runs `serve`. All attention ranks of a domain make the same calls with the same tags. Any numbers of
    both kinds of ranks, neither of which need divide the other. Results have the bits of `ExpertParallel` on ranks that
    have both, whatever the numbers and the routing.

        direct       attention a ──records, rows──► every expert rank           E records to each, 1 hop
        trampoline   attention a ──one message──► expert rank a mod E ──► every expert rank      1 record, 2 hops

    By trampoline the expert rank that forwards a token's rows also sums their results, and one row comes back. Where
    there are more attention ranks than expert ranks, they share trampolines.

    Args:
        comm: at least one attention and one expert rank. It may be used for other things as well.
        attention: how many ranks, the first ones, have attention.
        num_experts, hidden, max_tokens, topk, dtype, dispatch_quant, combine_quant, shared_experts: as of
            `ExpertParallel`; max_tokens for each attention rank and micro-batch.
        routing: "direct", "trampoline", or "auto": what the cost model finds cheaper; `why()` tells.
        micro_batches: how many an attention rank may have in flight.
        domains: groups of attention ranks that go on independently, as lists of ranks; all in one if not given. Expert
            ranks serve them in turn, as their micro-batches come.
        placement: for each expert rank the experts in its slots; evenly if not given.
        timeout: of each step of the making, in seconds.

    Raises:
        InvalidArgument, Mismatch, OutOfMemory and the others as `ExpertParallel` and `Communicator.split`.
    """

    def __init__(
        self,
        comm: Communicator,
        attention: int,
        num_experts: int,
        hidden: int,
        max_tokens: int,
        topk: int,
        dtype: Any = "bfloat16",
        dispatch_quant: str | None = None,
        combine_quant: str | None = None,
        *,
        routing: str = "auto",
        micro_batches: int = 2,
        domains: Sequence[Sequence[int]] | None = None,
        placement: Sequence[Sequence[int]] | None = None,
        shared_experts: Sequence[int] = (),
        timeout: float | None = None,
    ) -> None:
        if not isinstance(comm, Communicator):
            raise InvalidArgument(f"comm is a {type(comm).__name__}: expected an xccl.Communicator")
        if comm.size < 2:
            raise InvalidArgument("comm has 1 rank: expected an attention rank and an expert rank at least")
        self.comm = comm
        self.attention = whole("attention", attention, 1, comm.size - 1)
        self.experts = comm.size - self.attention
        self.domains = _domains(domains, self.attention)
        self.micro_batches = whole("micro_batches", micro_batches, 1, 64)
        num_experts, hidden, max_tokens, topk = (
            whole(name, value, 1)
            for name, value in (
                ("num_experts", num_experts),
                ("hidden", hidden),
                ("max_tokens", max_tokens),
                ("topk", topk),
            )
        )
        # What an ExpertParallel of the experts would refuse is refused to all here: attention may have none to do so. A
        # trampoline has the tokens of all that share it.
        shared_by = -(-max(map(len, self.domains)) // self.experts)
        ExpertParallel.plan(
            self.experts,
            num_experts,
            hidden,
            max_tokens * shared_by,
            topk,
            dtype,
            dispatch_quant=dispatch_quant,
            combine_quant=combine_quant,
            placement=placement,
            shared_experts=shared_experts,
        )
        shapes = [
            Shape(
                attention=len(members),
                experts=self.experts,
                tokens=max_tokens,
                hidden=hidden,
                topk=topk + len(shared_experts),
                element_bytes=row_dtype(dtype).itemsize,
            )
            for members in self.domains
        ]
        self._cost = choose(max(shapes, key=lambda shape: shape.attention), routing)
        self._costs = [Cost(shape, self._cost.routing, self._cost.asked) for shape in shapes]
        require_agreement(
            comm,
            {
                "attention": self.attention,
                "num_experts": num_experts,
                "hidden": hidden,
                "max_tokens": max_tokens,
                "topk": topk,
                "dtype": row_dtype(dtype).name,
                "dispatch_quant": dispatch_quant,
                "combine_quant": combine_quant,
                "routing": self.routing,
                "micro_batches": self.micro_batches,
                "domains": self.domains,
                "placement": None if placement is None else [list(map(int, slots)) for slots in placement],
                "shared_experts": list(map(int, shared_experts)),
            },
            timeout,
        )
        self._make_lanes(
            (num_experts, hidden, max_tokens, topk, dtype, dispatch_quant, combine_quant),
            {"placement": placement, "shared_experts": shared_experts, "timeout": timeout},
        )
        self._next = 0  # lane
        self._flying: deque[Lane] = deque()
        self._ended = False
        comm._dependents.add(self)

    def _make_lanes(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        make = Trampoline if self.routing == "trampoline" else Direct
        self._lanes: list[Lane] = []
        for _ in range(self.micro_batches):
            for domain, members in enumerate(self.domains):
                part = self.is_expert or self.comm.rank in members
                group = self.comm.split(0 if part else -1, 0, options["timeout"])
                if group is not None:
                    ranks = [*members, *range(self.attention, self.comm.size)]
                    self._lanes.append(make(group, domain, ranks, len(members), arguments, options))

    # --- What it is ------------------------------------------------------------------------------------------

    @property
    def is_expert(self) -> bool:
        """Whether this rank has experts; else it has attention."""
        return self.comm.rank >= self.attention

    @property
    def routing(self) -> str:
        """ "direct" or "trampoline"."""
        return self._cost.routing

    @property
    def local_experts(self) -> list[int]:
        """Global ids of the experts on this rank, in the order of `Batch.counts`; none on an attention rank."""
        return self._lanes[0].local_experts

    def why(self) -> str:
        """Why the routing is what it is: the cost model's table."""
        return str(self._cost)

    @property
    def cost(self) -> Cost:
        """What the cost model says of both routings, for a micro-batch of the largest domain."""
        return self._cost

    def cost_of(self, domain: int) -> Cost:
        """The same for a micro-batch of one domain."""
        return self._costs[whole("domain", domain, 0, len(self._costs) - 1)]

    def counters(self) -> Counters:
        """What this rank has done so far. A micro-batch takes exactly the records that `cost_of` its domain says."""
        return Counters(
            records=sum(lane.records for lane in self._lanes),
            bytes=sum(lane.bytes for lane in self._lanes),
            hops=max(lane.hops for lane in self._lanes),
            fan_out=len(set().union(*(lane.written_to for lane in self._lanes))),
        )

    # --- The attention side ----------------------------------------------------------------------------------

    def a2e(
        self,
        x: Any,
        topk_idx: Any,
        topk_weights: Any,
        *,
        tag: int = 0,
        timeout: float | None = None,
    ) -> None:
        """Sends the tokens of a micro-batch to their experts; `e2a` brings the sums. As `ExpertParallel.dispatch`.

        Args:
            x: (tokens, hidden), 0 to max_tokens tokens, any number on each rank; free to be overwritten on return.
            topk_idx, topk_weights: as of `ExpertParallel.dispatch`.
            tag: 0 to 2**31 - 2, which experts see: the layer, say. The same on all attention ranks of the domain.

        Raises:
            InvalidArgument: nothing was sent. Among others if `micro_batches` are in flight already: call `e2a` first.
            Others as `ExpertParallel.dispatch`.
        """
        self._require_attention("a2e")
        if len(self._flying) == self.micro_batches:
            raise InvalidArgument(
                f"a2e: {self.micro_batches} micro-batches are in flight, as many as micro_batches; call e2a first"
            )
        tag = whole("tag", tag, 0, END - 1)
        lane = self._lanes[self._next]
        lane.start(x, topk_idx, topk_weights, tag, timeout)
        self._next = (self._next + 1) % len(self._lanes)
        self._flying.append(lane)

    def e2a(
        self, *, out: np.ndarray[Any, Any] | None = None, timeout: float | None = None
    ) -> np.ndarray[Any, Any]:
        """(tokens, hidden): the weighted sums of the oldest micro-batch in flight, as `ExpertParallel.combine`.

        Raises InvalidArgument if none is in flight; else as `ExpertParallel.combine`.
        """
        self._require_attention("e2a")
        if not self._flying:
            raise InvalidArgument("e2a: no micro-batch is in flight; call a2e first")
        y = self._flying[0].finish(out, timeout)
        self._flying.popleft()
        return y

    def end(self, timeout: float | None = None) -> None:
        """No more micro-batches: expert ranks' `serve` returns once all domains have said so. Collective in the domain.

        Raises InvalidArgument if micro-batches are in flight.
        """
        self._require_attention("end")
        if self._flying:
            raise InvalidArgument(
                f"end: {len(self._flying)} micro-batches are in flight; call e2a for each first"
            )
        self._ended = True
        for lane in self._lanes:
            lane.end(timeout)
        for lane in self._lanes:
            lane.finish_the_end(timeout)

    # --- The expert side -------------------------------------------------------------------------------------

    def serve(self, compute: Callable[[Batch], Any]) -> int:
        """Receives, computes and sends until every domain has ended. Returns how many micro-batches there were.

        `compute(batch)` gives the results, (batch.num_rows, hidden), expert by expert: a new array, `batch.x` changed
        in place, or `batch.output_buffer()`. Each micro-batch that can be in flight has a thread, so one is received
        and another sent while a third is computed; `compute` runs in one thread at a time, in the order of arrival.

        Waits for work without a limit; a rank that dies, or fails, ends it. What `compute` raises ends it as well: the
        other ranks get PeerFailed with its text.
        """
        self._require_expert("serve")
        return Server(self._lanes, compute).run()

    def receive(self, timeout: float | None = None) -> Batch | None:
        """The next micro-batch, of each domain in turn; None when all have ended.

        With `send`, for a loop of one's own; `serve` is such a loop, in which the stages overlap.
        """
        self._require_expert("receive")
        while any(not lane.ended for lane in self._lanes):
            lane = self._lanes[self._next]
            self._next = (self._next + 1) % len(self._lanes)
            if not lane.ended and (batch := lane.receive(timeout)) is not None:
                return batch
        return None

    def send(self, batch: Batch, rows: Any, timeout: float | None = None) -> None:
        """Gives back the results of a micro-batch, (batch.num_rows, hidden). Waits for its attention ranks' `e2a`."""
        self._require_expert("send")
        if not isinstance(batch, Batch) or batch._lane not in self._lanes:
            raise InvalidArgument("batch was not received here: expected what receive() has returned")
        batch._lane.send(batch, rows, timeout)

    # --- The end ---------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        return all(lane.comm.closed for lane in self._lanes)

    def close(self) -> None:
        """Gives back what this rank has in it. Not collective; safe to call twice."""
        for lane in self._lanes:
            lane.close()

    def __enter__(self) -> DisaggregatedExperts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._abort(f"{type(error).__name__}: {error}")
        self.close()

    def __repr__(self) -> str:
        ranks = f"{self.attention} attention ranks, {self.experts} expert ranks"
        return f"<xccl.DisaggregatedExperts {ranks}, {self.routing}>"

    def _abort(self, reason: str) -> None:
        for lane in self._lanes:
            lane.abort(reason)

    def _require_attention(self, call: str) -> None:
        self._require_open(call)
        if self.is_expert:
            raise InvalidArgument(
                f"{call} is for attention ranks, the first {self.attention}: this rank has experts"
            )
        if self._ended:
            raise InvalidArgument(f"{call}: end() has been called")

    def _require_expert(self, call: str) -> None:
        self._require_open(call)
        if not self.is_expert:
            raise InvalidArgument(
                f"{call} is for expert ranks, from {self.attention} on: this rank has attention"
            )

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise Closed(f"{call}: this DisaggregatedExperts is closed")


def _domains(domains: Sequence[Sequence[int]] | None, attention: int) -> list[list[int]]:
    if domains is None:
        return [list(range(attention))]
    found = [
        [whole(f"domain {i}: rank", rank, 0, attention - 1) for rank in one] for i, one in enumerate(domains)
    ]
    if sorted(rank for one in found for rank in one) != list(range(attention)) or not all(found):
        raise InvalidArgument(
            f"domains={domains!r}: expected groups in which each attention rank, 0 to {attention - 1}, is once"
        )
    return [sorted(one) for one in found]
