"""Direct: every attention rank writes to every expert rank, and sums the rows that come back. One hop."""

from __future__ import annotations

from typing import Any

import numpy as np

from xccl.communicator import Communicator
from xccl.disaggregated.lane import END, Batch, Lane, no_tokens, pairs, row_bytes
from xccl.expert_parallel import Dispatched, ExpertParallel
from xccl.pending import Pending


class Direct(Lane):
    """Every attention rank writes to every expert rank, and sums what comes back."""

    def __init__(
        self,
        comm: Communicator,
        domain: int,
        ranks: list[int],
        attention: int,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        super().__init__(comm, domain, ranks)
        placement = options["placement"]
        placed = None if placement is None else [[]] * attention + list(placement)
        self.ep = ExpertParallel(comm, *arguments, **{**options, "placement": placed}, token_ranks=attention)
        self._ep = self.ep
        self._others = set(ranks[attention:] if comm.rank < attention else ranks[:attention])
        self._started: Pending[Dispatched] | None = None

    def start(self, x: Any, idx: Any, weights: Any, tag: int, timeout: float | None) -> None:
        # Nothing of x is needed after this half: it is staged, since no expert is here.
        self._started = self._ep.dispatch_async(x, idx, weights, tag=tag, timeout=timeout)
        self.bytes += pairs(idx, self._ep) * row_bytes(self._ep, "dispatch")
        self.written_to = self._others

    def _start_the_end(self, timeout: float | None) -> None:
        self._started = self._ep.dispatch_async(*no_tokens(self._ep), tag=END, timeout=timeout)

    def finish_the_end(self, timeout: float | None) -> None:
        assert self._started is not None
        self._started.wait(timeout).release()

    def finish(self, out: np.ndarray[Any, Any] | None, timeout: float | None) -> np.ndarray[Any, Any]:
        assert self._started is not None
        d = self._started.wait(timeout)
        y = self._ep.combine(no_tokens(self._ep)[0], d, out=out, timeout=timeout)
        d.release()
        return y

    def _receive(self, timeout: float | None) -> Batch | None:
        batch = self._batch(self._ep.dispatch(*no_tokens(self._ep), timeout=timeout))
        self.written_to = self._others
        return batch

    def send(self, batch: Batch, rows: Any, timeout: float | None) -> None:
        self._ep.combine(rows, batch._d, timeout=timeout)
        self.bytes += batch.num_rows * row_bytes(self._ep, "combine")
        batch._d.release()
