"""dispatch and combine as a user of numpy and mpi4py would write them today: the algorithm of moe_torch.py.

numpy has neither bfloat16 nor a weighted sum of rows, so sums take chunks of rows that stay in a cache, widen them by
bit operations and add the k-th row of each token in one step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parts.moe_work import Work

CHUNK = 64

Bits = np.ndarray[Any, np.dtype[np.uint16]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class NumpyJob:
    """One shape. Buffers are made once; their memory is taken as it is used."""

    def __init__(self, exchange: Any, work: Work) -> None:
        self.work = work
        self._exchange = exchange
        self._local = work.experts // work.size
        most = work.tokens * work.size
        self._sent, self._received = self._rows(most), self._rows(most)
        self._by_expert = self._rows(most * work.topk)
        self._x = self._rows(work.tokens)
        self.barrier = exchange.barrier

    def _rows(self, count: int) -> Bits:
        return np.empty((count, self.work.hidden), np.uint16)

    def prepare(self, seed: int, variant: str) -> None:
        """New tokens and routing."""
        self._routing = self.work.routing(seed, self.work.rank)
        np.copyto(self._x, self.work.x)

    def dispatch(self) -> None:
        """Timed."""
        work, k = self.work, self.work.topk
        goes = np.zeros((work.tokens, work.size), bool)
        np.put_along_axis(goes, self._routing // self._local, True, 1)
        _, self._token = np.nonzero(goes.T)
        self._sent_to = goes.sum(0)
        rows = self._sent[: self._token.size]
        np.take(self._x, self._token, 0, out=rows, mode="clip")
        about = np.empty((self._token.size, 2 * k), np.int32)
        about[:, :k] = self._routing[self._token]
        about[:, k:] = work.weights[self._token].view(np.int32)
        self._received_from = self._exchange.counts(self._sent_to)
        self._count = int(self._received_from.sum())
        received = self._received[: self._count]
        self._exchange.rows(rows, self._sent_to, self._received_from, received)
        about_received = np.empty((self._count, 2 * k), np.int32)
        self._exchange.rows(about, self._sent_to, self._received_from, about_received)
        expert = about_received[:, :k] - self._exchange.rank * self._local
        row, slot = np.nonzero((expert >= 0) & (expert < self._local))
        chosen = expert[row, slot]
        order = np.argsort(chosen, kind="stable")
        self._counts = np.bincount(chosen, minlength=self._local)
        self._row_weights = about_received[:, k:].view(np.float32)[row, slot][order]
        self._row = row[order]
        self._outputs = self._by_expert[: row.size]
        np.take(received, self._row, 0, out=self._outputs, mode="clip")

    def combine(self) -> None:
        """Timed."""
        partial = summed(self._outputs, self._row, self._row_weights, self._count)
        returned = self._sent[: self._token.size]  # what was sent is no longer needed
        self._exchange.rows(partial, self._received_from, self._sent_to, returned)
        self._y = summed(returned, self._token, None, self.work.tokens)

    def finish(self) -> None:
        """Nothing."""

    def result(self) -> Bits:
        """Bits."""
        return self._y

    def rows(self) -> int:
        """Of the last dispatch."""
        return int(self._counts.sum())

    def close(self) -> None:
        """Nothing."""


def widened(bits: Bits) -> Floats:
    """As float32."""
    out = np.empty(bits.shape, np.uint32)
    np.left_shift(bits, 16, out=out, dtype=np.uint32, casting="unsafe")
    return out.view(np.float32)


def rounded(values: Floats) -> Bits:
    """To bfloat16, to nearest even."""
    bits = values.view(np.uint32)
    up = (bits >> 16) & 1
    up += 0x7FFF
    up += bits
    up >>= 16
    return up.astype(np.uint16)


def summed(rows: Bits, target: Any, weights: Floats | None, count: int) -> Bits:
    """`count` sums: of the rows with each target, weighted, in float32."""
    order = np.argsort(target, kind="stable")
    each = np.bincount(target, minlength=count)
    first = np.cumsum(each) - each
    out = np.zeros((count, rows.shape[1]), np.uint16)
    for begin in range(0, count, CHUNK):
        end = min(count, begin + CHUNK)
        out[begin:end] = _chunk(rows, order, first[begin:end], each[begin:end], weights)
    return out


def _chunk(rows: Bits, order: Any, first: Any, each: Any, weights: Floats | None) -> Bits:
    sums = np.zeros((len(each), rows.shape[1]), np.float32)
    for k in range(int(each.max(initial=0))):
        having = np.nonzero(each > k)[0]
        chosen = order[first[having] + k]
        values = widened(rows[chosen])
        if weights is not None:
            values *= weights[chosen][:, None]
        if having.size == len(each):
            sums += values
        else:
            sums[having] += values
    return rounded(sums)
