"""The floors of dispatch and combine: one pass over the memory each, over the same working set as XCCL's.

Variants: "pull": every rank copies the rows for its own experts out of everybody's tokens; "push": every rank copies
its tokens to where they are wanted; "tokens": every rank copies each token that its experts want once. Each by memcpy
or by non-temporal stores. combine is the same in all: a rank sums,
for each of its tokens, the rows where they lie. Its figure counts only after "pull", since after "push" the rows still
are in the caches of the rank that sums them, where no expert could have worked on them.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from typing import Any

import numpy as np

from parts.floor import METHODS, Floor
from parts.moe_work import Spans, Work
from parts.shared import Shared


class Part:
    """See rank.py. Not a MoePart: it takes its times in C, right beside the pass."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.rank: int = spec["rank"]
        self._size: int = spec["size"]
        self._spec = spec

    def take(self, case: dict[str, int]) -> None:
        """Another shape."""
        self._work = work = Work(self.rank, self._size, **case)
        self._row = row = work.hidden * 2
        tokens = work.tokens * row
        rows = self._most_rows() * row
        self._shared = Shared(self._spec["memory"])
        meeting, *pieces = self._shared.plan(64, *[tokens] * 2 * self._size, *[rows] * self._size)
        self._inputs, self._results = pieces[: 2 * self._size], pieces[2 * self._size :]
        for turn in range(2):
            self._shared.touch(self._inputs[2 * self.rank + turn], tokens)
        self._shared.touch(self._results[self.rank], rows)
        self._floor = Floor(self._shared, meeting, self._spec)
        self._y = np.empty((work.tokens, work.hidden), np.uint16)
        self._turn = 0

    def _most_rows(self) -> int:
        """A rank's rows, with room for the chance that routing has: the mean and eight times its deviation."""
        mean = self._work.tokens * self._work.topk
        return min(mean * self._size, int(mean + 8 * mean**0.5) + 64)

    def run(self, variant: str, iterations: int, seed: int) -> Spans:
        """One sample."""
        way, method = variant.split()
        spans: Spans = defaultdict(list)
        for iteration in range(iterations):
            self._seed = seed + iteration
            self._turn ^= 1  # as XCCL's input buffers: two in turn
            self._prepare()
            if way == "tokens":
                spans["dispatch to tokens"].append(self._dispatch(*self._tokens(), METHODS[method]))
            source, target = (
                (self._source[self.rank], self._target[self.rank]) if way == "push" else self._pulled()
            )
            spans["dispatch"].append(self._dispatch(source, target, METHODS[method]))
            spans["combine"].append(self._combine(self._target[self.rank]))
        return spans

    def _prepare(self) -> None:
        """New tokens and routing; from it, for all ranks: where each (token, slot) lies, and where it goes."""
        work = self._work
        mine = self._inputs[2 * self.rank + self._turn]
        self._shared.array(mine, work.x.shape, np.uint16)[:] = work.x
        experts = np.stack([work.routing(self._seed, rank) for rank in range(self._size)])
        order = np.argsort(experts.reshape(-1), kind="stable")  # (expert, source, token)
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        host = experts // (work.experts // self._size)
        first_rows = np.concatenate(
            ([0], np.cumsum(np.bincount(host.reshape(-1), minlength=self._size))[:-1])
        )
        in_result = place.reshape(host.shape) - first_rows[host]
        inputs = np.array([self._inputs[2 * rank + self._turn] for rank in range(self._size)])
        token = np.arange(work.tokens)[None, :, None]
        self._source = np.broadcast_to(inputs[:, None, None] + token * self._row, host.shape)
        self._target = np.array(self._results)[host] + in_result * self._row
        self._host, self._order = host, order

    def _pulled(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The rows for this rank's experts, in the order in which they lie there."""
        wanted = self._order[self._host.reshape(-1)[self._order] == self.rank]
        return self._source.reshape(-1)[wanted], self._target.reshape(-1)[wanted]

    def _tokens(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The tokens that this rank's experts want, each once, one after the other."""
        source = self._source[..., 0][(self._host == self.rank).any(axis=-1)]
        return source, self._results[self.rank] + np.arange(source.size) * self._row

    def _dispatch(self, source: Any, target: Any, method: int) -> tuple[int, int, int]:
        source, target = (np.ascontiguousarray(one, np.int64) for one in (source, target))
        arguments = (source.size, self._row, method)
        return (*self._floor.call("floor_copy_rows", source, target, *map(ctypes.c_int64, arguments)), 1)

    def _combine(self, target: Any) -> tuple[int, int, int]:
        work = self._work
        rows = np.ascontiguousarray(target, np.int64)
        shape = (ctypes.c_int64(work.tokens), ctypes.c_int(work.topk), ctypes.c_int64(work.hidden))
        return (*self._floor.call("floor_sum_rows", rows, work.weights, self._y, *shape), 1)

    def check(self) -> str | None:
        """Of the last iteration."""
        return self._work.wrong(self._y)

    def close(self) -> None:
        """Nothing to do."""
