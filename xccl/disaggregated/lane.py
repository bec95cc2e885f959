"""A lane: one micro-batch in flight, of one domain of attention ranks; what experts see of it; what is counted.

Used by experts.py; direct.py and trampoline.py say how a lane moves rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xccl.array import Array
from xccl.communicator import Communicator
from xccl.expert_parallel import Dispatched, ExpertParallel

END = 2**31 - 1  # the tag that ends the stream


@dataclass(frozen=True)
class Counters:
    """What one rank has done for the micro-batches since its object was made; the end of a stream does not count.

    Attributes:
        records: announcements written into other ranks' memory: records of dispatch and combine, and messages.
        bytes: of rows, and of messages that carry rows, for other ranks to take.
        hops: ranks that a row passes on its way to an expert, that one counted: 1 direct; 2 by trampoline, if there is
            more than one expert rank.
        fan_out: how many ranks this one has written to.
    """

    records: int
    bytes: int
    hops: int
    fan_out: int


class Batch:
    """What an expert rank computes on: the rows of one micro-batch, as `Dispatched` has them."""

    def __init__(self, lane: Lane, d: Dispatched) -> None:
        self._lane = lane
        self._d = d
        self.tag = d.tag  #: as given to `a2e`, a layer say
        self.domain = lane.domain  #: which group of attention ranks it is from

    @property
    def x(self) -> Array:
        """(num_rows, hidden): rows, expert by expert; experts may work in place."""
        return self._d.x

    @property
    def scales(self) -> Array | None:
        """Of the rows, if they are quantised; see `Dispatched.scales`."""
        return self._d.scales

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return self._d.num_rows

    @property
    def counts(self) -> np.ndarray[Any, Any]:
        """(local experts,) int64: rows of each expert."""
        return self._d.counts

    def expert(self, i: int) -> Array:
        """(counts[i], hidden): the rows of the i-th local expert, a view."""
        return self._d.expert(i)

    def rows_of(self, i: int) -> slice:
        """Where they are among all rows."""
        return self._d.rows_of(i)

    def output_buffer(self) -> Array:
        """(num_rows, hidden) to write results into, which `send` then does not copy."""
        return self._d.output_buffer()


class Lane:
    """One micro-batch of one domain: its ranks, with an ExpertParallel. Used by one thread at a time."""

    def __init__(self, comm: Communicator, domain: int, ranks: list[int]) -> None:
        self.comm = comm
        self.domain = domain
        self.ranks = (
            ranks  # of the whole object, for each in `comm`: the domain's attention ranks, then the experts
        )
        self.ended = False
        self.hops = 1  # as of Counters
        self.bytes = 0
        self.written_to: set[int] = set()
        self._messages = 0
        self._of_the_end = 0  # records that do not count
        self.ep: ExpertParallel | None = None  # none on an attention rank that uses a trampoline

    @property
    def records(self) -> int:
        return self._messages + (self.ep._native.records_written if self.ep else 0) - self._of_the_end

    @property
    def local_experts(self) -> list[int]:
        return self.ep.local_experts if self.ep else []

    def start(self, x: Any, idx: Any, weights: Any, tag: int, timeout: float | None) -> None:
        raise NotImplementedError

    def end(self, timeout: float | None) -> None:
        """Tells the experts; `finish_the_end` waits until they know."""
        before, bytes_before = self.records, self.bytes
        self._start_the_end(timeout)
        self._of_the_end, self.bytes = self.records - before, bytes_before

    def receive(self, timeout: float | None) -> Batch | None:
        """The next micro-batch; None at the end of the stream."""
        before = self.records
        batch = self._receive(timeout)
        if batch is None:
            self._of_the_end = self.records - before
        return batch

    def _start_the_end(self, timeout: float | None) -> None:
        raise NotImplementedError

    def finish_the_end(self, timeout: float | None) -> None:
        raise NotImplementedError

    def finish(self, out: np.ndarray[Any, Any] | None, timeout: float | None) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def _receive(self, timeout: float | None) -> Batch | None:
        raise NotImplementedError

    def send(self, batch: Batch, rows: Any, timeout: float | None) -> None:
        raise NotImplementedError

    def abort(self, reason: str) -> None:
        if not self.comm.closed:
            self.comm.abort(reason)

    def close(self) -> None:
        if self.ep:
            self.ep.close()
        self.comm.close()

    def _batch(self, d: Dispatched) -> Batch | None:
        self.ended = d.tag == END
        if not self.ended:
            return Batch(self, d)
        d.release()
        return None


def no_tokens(ep: ExpertParallel) -> tuple[Any, Any, Any]:
    return (
        np.empty((0, ep.hidden), ep.dtype),
        np.empty((0, ep.topk), np.int64),
        np.empty((0, ep.topk), np.float32),
    )


def pairs(topk_idx: Any, ep: ExpertParallel) -> int:
    ids = np.asarray(topk_idx)
    return int(np.count_nonzero(ids >= 0)) + len(ids) * len(ep.shared_experts)


def row_bytes(ep: ExpertParallel, way: str) -> int:
    """Of a row as it travels, its scales with it."""
    quant = ep.dispatch_quant if way == "dispatch" else ep.combine_quant
    if quant is None:
        return ep.hidden * ep.dtype.itemsize
    return ep.hidden + 4 * (1 if quant == "int8" else -(-ep.hidden // 128))
