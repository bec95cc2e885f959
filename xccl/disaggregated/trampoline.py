"""Trampoline forward (arXiv:2508.02520, section 3.3): one message to one expert rank, which dispatches among them.

On the way back it sums, and one row for each token returns. Not here: what a message is (message.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from xccl.array import Array
from xccl.communicator import Communicator
from xccl.disaggregated.lane import END, Batch, Lane, pairs, row_bytes
from xccl.disaggregated.message import Microbatch
from xccl.errors import InvalidArgument, Mismatch, PeerFailed
from xccl.expert_parallel import Dispatched, ExpertParallel


class Trampoline(Lane):
    """Attention rank a writes to expert rank a mod E alone, which dispatches its tokens among the expert ranks."""

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
        _, hidden, max_tokens, topk, dtype, *_ = arguments
        experts = comm.size - attention
        mine = comm.rank - attention
        self.hops = min(2, experts)  # the only expert rank has nobody to forward to
        self._clients = [a for a in range(attention) if a % experts == mine]
        self._trampoline = attention + comm.rank % experts if mine < 0 else comm.rank
        # Those that share one send so many tokens to it.
        most = max_tokens * -(-attention // experts)
        group = comm.split(0 if mine >= 0 else -1, 0, options["timeout"])
        self._group = group
        if group is not None:
            changed = (*arguments[:2], most, *arguments[3:])
            self.ep = ExpertParallel(group, *changed, **options)
        self._like = Microbatch(
            hidden, max_tokens, topk, dtype, tuple(options["shared_experts"]), arguments[0]
        )
        self._buffer = comm.empty(0, "uint8")
        self._sums = comm.empty((0, hidden), dtype)
        self._request: Any = None
        self._tokens = 0
        self._parts: list[int] = []  # tokens of each client

    # --- Attention ---

    def start(self, x: Any, idx: Any, weights: Any, tag: int, timeout: float | None) -> None:
        rows, ids, factors = self._like.checked(x, idx, weights)
        self._post(rows, ids, factors, tag, timeout)
        self._tokens = len(rows)

    def _start_the_end(self, timeout: float | None) -> None:
        self._post(*self._like.nothing(), END, timeout)

    def finish_the_end(self, timeout: float | None) -> None:
        self._request.wait(timeout)

    def _post(self, rows: Any, ids: Any, factors: Any, tag: int, timeout: float | None) -> None:
        size = self._like.message_bytes(len(rows))
        if self._buffer.nbytes < size:
            self._buffer = self.comm.empty(size, "uint8")
        message = self._buffer[:size]
        self._like.write(message, rows, ids, factors, tag)
        self._request = self.comm.isend(message, self._trampoline)
        self._messages += 1
        self.bytes += size
        self.written_to = {self.ranks[self._trampoline]}

    def finish(self, out: np.ndarray[Any, Any] | None, timeout: float | None) -> np.ndarray[Any, Any]:
        like = self._like
        if out is None:
            out = np.empty((self._tokens, like.hidden), like.dtype).view(Array)
        elif not isinstance(out, np.ndarray):
            raise InvalidArgument(f"out is a {type(out).__name__}: expected a numpy array")
        elif out.shape != (self._tokens, like.hidden) or out.dtype != like.dtype:
            raise InvalidArgument(
                f"out has shape {out.shape} and dtype {out.dtype}: expected ({self._tokens}, {like.hidden}) and "
                f"{like.dtype}"
            )
        self.comm.recv(out, self._trampoline, timeout=timeout)
        self._request.wait(timeout)  # it has been read: these are its sums
        return out

    # --- Experts ---

    def _receive(self, timeout: float | None) -> Batch | None:
        assert self.ep is not None
        views = [self.comm.recv_view(client, timeout=timeout) for client in self._clients]
        parts = [
            self._like.read(view.array, self.ranks[client])
            for view, client in zip(views, self._clients, strict=True)
        ]
        self._parts = [len(rows) for rows, *_ in parts]
        x = self.ep.input_buffer(sum(self._parts), timeout)
        if parts:
            np.concatenate([rows for rows, *_ in parts], out=x)
            ids = np.concatenate([part[1] for part in parts])
            factors = np.concatenate([part[2] for part in parts])
            tags = {tag for *_, tag in parts}
        else:
            _, ids, factors = self._like.nothing()
            tags = set()
        for view in views:
            view.release()
        if len(tags) > 1:
            clients = [self.ranks[client] for client in self._clients]
            raise Mismatch(
                f"a2e: attention ranks {clients} give tags {sorted(tags)}", op="a2e", ranks=clients
            )
        with self._blaming():
            d = self.ep.dispatch(x, ids, factors, tag=next(iter(tags), None), timeout=timeout)
        self._count(pairs(ids, self.ep) - self._own_rows(d), "dispatch")
        return self._batch(d)

    def send(self, batch: Batch, rows: Any, timeout: float | None) -> None:
        assert self.ep is not None
        d = batch._d
        tokens = sum(self._parts)
        if len(self._sums) < tokens:
            self._sums = self.comm.empty((tokens, self._like.hidden), self._like.dtype)
        sums = self._sums[:tokens]
        with self._blaming():
            self.ep.combine(rows, d, out=sums, timeout=timeout)
        self._count(d.num_rows - self._own_rows(d), "combine")
        d.release()
        ends = np.cumsum(self._parts)
        requests = [
            self.comm.isend(sums[end - count : end], client)
            for client, count, end in zip(self._clients, self._parts, ends, strict=True)
        ]
        self._messages += len(requests)
        self.bytes += sums.nbytes
        self.written_to |= {self.ranks[client] for client in self._clients}
        for request in requests:
            request.wait(timeout)

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        """An expert rank gives up because attention has died, which is none of their group: that is the cause."""
        try:
            yield
        except PeerFailed:
            self.comm.iprobe()  # PeerLost if a rank of the lane has died
            raise

    def _own_rows(self, d: Dispatched) -> int:
        assert self._group is not None
        return int(np.count_nonzero(d.src_rank == self._group.rank))

    def _count(self, rows: int, way: str) -> None:
        assert self.ep is not None
        self.bytes += rows * row_bytes(self.ep, way)
        self.written_to |= set(self.ranks[-self.ep.comm.size :]) - {self.ranks[self.comm.rank]}

    def abort(self, reason: str) -> None:
        if self._group is not None and not self._group.closed:
            self._group.abort(reason)
        super().abort(reason)

    def close(self) -> None:
        if self.ep:
            self.ep.close()
        if self._group is not None:
            self._group.close()
        self.comm.close()
