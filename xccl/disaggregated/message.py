"""A micro-batch as one message: checked where it is made, checked again where it is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from xccl.array import as_array
from xccl.errors import InvalidArgument
from xccl.expert_parallel import expert_ids, row_dtype

HEADER = 8  # int64 words before the rows: tokens, tag


class Microbatch:
    """What an attention rank that has no ExpertParallel checks and sends, and its trampoline reads.

    8 words (tokens, tag), the rows, the expert ids (int64), the weights (float32), each padded to 8 bytes.
    """

    def __init__(
        self, hidden: int, max_tokens: int, topk: int, dtype: Any, shared: tuple[int, ...], num_experts: int
    ) -> None:
        self.hidden, self.max_tokens, self.topk, self.num_experts = hidden, max_tokens, topk, num_experts
        self.dtype = row_dtype(dtype)
        self.shared = shared
        self.slots = topk + len(shared)

    def nothing(self) -> tuple[Any, Any, Any]:
        return (
            np.empty((0, self.hidden), self.dtype),
            np.empty((0, self.topk), np.int64),
            np.empty((0, self.slots), np.float32),
        )

    def checked(self, x: Any, topk_idx: Any, topk_weights: Any) -> tuple[Any, Any, Any]:
        """As ExpertParallel.dispatch takes them; InvalidArgument in its words."""
        rows, ids, weights = as_array("x", x), expert_ids(topk_idx), as_array("topk_weights", topk_weights)
        if self.shared and weights.ndim == 2 and weights.shape[1] == self.topk:
            weights = np.concatenate([weights, np.ones((len(weights), len(self.shared)), np.float32)], 1)
        for name, array, dtype in (("x", rows, self.dtype), ("topk_weights", weights, np.dtype(np.float32))):
            if array.dtype != dtype:
                raise InvalidArgument(f"{name} has dtype {array.dtype}: expected {dtype}")
        if rows.ndim != 2 or rows.shape[1] != self.hidden:
            raise InvalidArgument(f"x has shape {rows.shape}: expected (n, {self.hidden})")
        tokens = len(rows)
        if tokens > self.max_tokens:
            raise InvalidArgument(f"x has {tokens} tokens: expected 0 to max_tokens={self.max_tokens}")
        for name, array, width in (("topk_idx", ids, self.topk), ("topk_weights", weights, self.slots)):
            if array.shape != (tokens, width):
                raise InvalidArgument(f"{name} has shape {array.shape}: expected ({tokens}, {width})")
        wrong = np.argwhere((ids < -1) | (ids >= self.num_experts))
        if len(wrong):
            token, slot = wrong[0].tolist()
            raise InvalidArgument(
                f"token {token} names expert {ids[token, slot]} in slot {slot}: expected -1 (none) to "
                f"{self.num_experts - 1}"
            )
        return rows, ids, weights

    def _pieces(self, tokens: int) -> list[int]:
        """Where the rows, the expert ids and the weights begin, and where the message ends."""
        ends = [8 * HEADER]
        for length in (
            tokens * self.hidden * self.dtype.itemsize,
            8 * tokens * self.topk,
            4 * tokens * self.slots,
        ):
            ends.append(ends[-1] + -(-length // 8) * 8)
        return ends

    def message_bytes(self, tokens: int) -> int:
        return self._pieces(tokens)[-1]

    def write(self, message: np.ndarray[Any, Any], rows: Any, ids: Any, weights: Any, tag: int) -> None:
        tokens = len(rows)
        message[: 8 * HEADER].view(np.int64)[:2] = tokens, tag
        for into, array in zip(self._arrays(message, tokens), (rows, ids, weights), strict=True):
            into[...] = array

    def read(self, message: np.ndarray[Any, Any], client: int) -> tuple[Any, Any, Any, int]:
        """Rows, where they lie; copies of expert ids and weights; the tag. InvalidArgument if it is no such message."""
        tokens, tag = (
            message[: 8 * HEADER].view(np.int64)[:2].tolist() if message.nbytes >= 8 * HEADER else (-1, 0)
        )
        if not 0 <= tokens <= self.max_tokens or message.nbytes != self.message_bytes(tokens):
            raise InvalidArgument(
                f"attention rank {client} sent {message.nbytes} bytes that are no micro-batch"
            )
        rows, ids, weights = self._arrays(message, tokens)
        return rows, np.array(ids), np.array(weights), tag

    def _arrays(self, message: np.ndarray[Any, Any], tokens: int) -> list[Any]:
        begins = self._pieces(tokens)
        shapes: list[tuple[np.dtype[Any], int]] = [
            (self.dtype, self.hidden),
            (np.dtype(np.int64), self.topk),
            (np.dtype(np.float32), self.slots),
        ]
        return [
            message[begin : begin + tokens * width * dtype.itemsize].view(dtype).reshape(tokens, width)
            for begin, (dtype, width) in zip(begins, shapes, strict=False)
        ]
