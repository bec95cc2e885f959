"""XCCL's dispatch and combine with rows as they are, as int8 and as fp8_e4m3; from Python.

Variants: a quantisation, or "none", and where the user has his arrays: "private", tokens and results in arrays of his
own, as a GEMM leaves them; "buffers", in `ep.input_buffer` and `d.output_buffer()`, which rows that are not quantised
are read from without a copy. Results are the tokens themselves, so combine must return about what was dispatched.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import ml_dtypes
import numpy as np

import xccl
from parts.moe_work import Spans, Work

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LOOKED_AT = 32  # rows of each dispatch


class Part:
    """See rank.py."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._comm = xccl.init(rank=spec["rank"], size=spec["size"], job=spec["job"], timeout=100)
        self.rank = self._comm.rank
        self._eps: dict[str, xccl.ExpertParallel] = {}
        self._wrong: str | None = None

    def take(self, case: dict[str, int]) -> None:
        """Another shape."""
        self._close()
        self._works = [Work(rank, self._comm.size, **case) for rank in range(self._comm.size)]
        self._work = self._works[self.rank]
        self._x = self._work.x.view(BFLOAT16)
        self._everybodys = np.concatenate([work.x for work in self._works])
        self._results = np.empty((0, self._work.hidden), BFLOAT16)
        self._own_x = np.empty_like(self._x)
        self._y = np.empty_like(self._x)

    def _ep(self, quant: str) -> xccl.ExpertParallel:
        if quant not in self._eps:
            work, asked = self._work, None if quant == "none" else quant
            self._eps[quant] = xccl.ExpertParallel(
                self._comm,
                work.experts,
                work.hidden,
                work.tokens,
                work.topk,
                dispatch_quant=asked,
                combine_quant=asked,
                results=1,
            )
        return self._eps[quant]

    def run(self, variant: str, iterations: int, seed: int) -> Spans:
        """One sample."""
        quant, _, where = variant.partition(" ")
        ep, private = self._ep(quant), where == "private"
        dispatches, combines = [], []
        for iteration in range(iterations):
            routing = self._work.routing(seed + iteration, self.rank)
            x = self._own_x if private else ep.input_buffer(self._work.tokens)
            x[:] = self._x
            self._comm.barrier()
            start = monotonic_ns()
            d = ep.dispatch(x, routing, self._work.weights)
            dispatches.append((start, monotonic_ns(), 1))
            self._wrong = self._wrong or self._look_at(d)
            results = self._private(d.num_rows) if private else d.output_buffer()
            self._make(d, results)
            self._comm.barrier()
            start = monotonic_ns()
            ep.combine(results, d, out=self._y)
            combines.append((start, monotonic_ns(), 1))
            del results
            d.release()
        suffix = "" if private else ", library's buffers"
        return {f"dispatch{suffix}": dispatches, f"combine{suffix}": combines}

    def _private(self, rows: int) -> np.ndarray[Any, Any]:
        if len(self._results) < rows:
            self._results = np.empty((rows + rows // 16, self._work.hidden), BFLOAT16)
        return self._results[:rows]

    def _sources(self, d: xccl.Dispatched) -> np.ndarray[Any, Any]:
        return d.src_rank.astype(np.int64) * self._work.tokens + d.src_token

    def _make(self, d: xccl.Dispatched, results: np.ndarray[Any, Any]) -> None:
        np.take(self._everybodys, self._sources(d), axis=0, out=results.view(np.uint16), mode="clip")

    def _look_at(self, d: xccl.Dispatched) -> str | None:
        """Are some of the rows that came the right ones?"""
        some = (
            np.linspace(0, d.num_rows - 1, LOOKED_AT).astype(np.int64)
            if d.num_rows
            else np.zeros(0, np.int64)
        )
        found = d.x[some].astype(np.float32)
        if d.scales is not None:
            scales = np.array(d.scales).reshape(d.num_rows, -1)[some]
            found *= np.repeat(scales, -(-self._work.hidden // scales.shape[1]), axis=1)[
                :, : self._work.hidden
            ]
        expected = self._everybodys[self._sources(d)[some]].view(BFLOAT16)
        return None if close(found, expected) else "dispatch brought other rows"

    def check(self) -> str | None:
        """Of all iterations since the last check, and of the last one's sums."""
        wrong, self._wrong = self._wrong, None
        return wrong or (None if close(self._y, self._x) else "combine returned other sums")

    def _close(self) -> None:
        for ep in self._eps.values():
            ep.close()
        self._eps.clear()

    def close(self) -> None:
        """Leaves the job."""
        self._close()
        self._comm.close()


def close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Whole numbers of -9 to 9, quantised twice at the most, beside what they were."""
    expected = expected.astype(np.float32)
    return bool((np.abs(found.astype(np.float32) - expected) <= 0.1 + 0.15 * np.abs(expected)).all())
