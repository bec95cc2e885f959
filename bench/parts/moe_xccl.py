"""XCCL's dispatch and combine from Python.

Variants: "input buffer", where the model has written its tokens into `ep.input_buffer`; "private", where it has them in
an array of its own. Experts work in place on d.x. "tokens": from the input buffer in layout "token", where experts
gather their rows from d.x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xccl
from parts.moe_work import MoePart, Spans, Work


class Part(MoePart):
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._comm = xccl.init(rank=spec["rank"], size=spec["size"], job=spec["job"], timeout=100)
        super().__init__(self._comm.rank, self._comm.size, lambda work: XcclJob(self._comm, work))

    def run(self, variant: str, iterations: int, seed: int) -> Spans:
        """One sample."""
        spans = super().run(variant, iterations, seed)
        return {"dispatch to tokens": spans["dispatch"]} if variant == "tokens" else spans

    def close(self) -> None:
        """Leaves the job."""
        super().close()
        self._comm.close()


class XcclJob:
    """One shape."""

    def __init__(self, comm: xccl.Communicator, work: Work) -> None:
        self.work = work
        self._comm = comm
        self._eps: dict[str, xccl.ExpertParallel] = {}
        self._use("expert")
        self._private = np.empty((work.tokens, work.hidden), self._ep.dtype)
        self._y = np.empty_like(self._private)
        self.barrier = comm.barrier

    def _use(self, layout: str) -> None:
        shape = (self.work.experts, self.work.hidden, self.work.tokens, self.work.topk)
        if layout not in self._eps:
            self._eps[layout] = xccl.ExpertParallel(self._comm, *shape, layout=layout)
        self._ep = self._eps[layout]

    def prepare(self, seed: int, variant: str) -> None:
        """New tokens and routing."""
        self._use("token" if variant == "tokens" else "expert")
        self._routing = self.work.routing(seed, self.work.rank)
        self._x = self._private if variant == "private" else self._ep.input_buffer(self.work.tokens)
        np.copyto(self._x.view(np.uint16), self.work.x)

    def dispatch(self) -> None:
        """Timed."""
        self._d = self._ep.dispatch(self._x, self._routing, self.work.weights)

    def combine(self) -> None:
        """Timed, but for layout "token"."""
        rows = self._d.x if self._ep.layout == "expert" else self._d.x[self._d.index]
        self._ep.combine(rows, self._d, out=self._y)

    def finish(self) -> None:
        """The rows go back to the pool."""
        self._rows = self._d.num_rows
        self._d.release()

    def result(self) -> np.ndarray[Any, Any]:
        """Bits."""
        return self._y.view(np.uint16)

    def rows(self) -> int:
        """Of the last dispatch."""
        return self._rows

    def close(self) -> None:
        """Gives the memory back."""
        for ep in self._eps.values():
            ep.close()
