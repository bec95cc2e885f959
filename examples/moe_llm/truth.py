"""The same computations in one process without any communication: what the ranks are held to.

Called by demo.py and checks.py. For k = E the truth is the dense model as it stands in the GGUF file, not the
regrouped experts; for k < E it is the mixture of experts with the same routers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from dense import DenseFeedForward, load_backbone
from experts import OneProcessMoe
from gguf_file import GgufModel
from llama import Chunk, FeedForward, KvCache, Llama
from prepare import Prepared

CHUNK = 256  # tokens in one go; bounds the memory of activations
LOGIT_ROWS = 64  # rows of logits in memory at once, 200 kB each

Tokens = Sequence[int]


class Truth:
    """One process that can be asked what the ranks should have computed."""

    def __init__(self, model: GgufModel, prepared: Prepared) -> None:
        self._dense_model = Llama(load_backbone(model))
        self._dense = DenseFeedForward(model)
        self._moe_model = Llama(prepared.backbone)
        self._moe = prepared.moe
        self._known: dict[tuple[int | None, tuple[int, ...]], np.ndarray] = {}

    @property
    def experts(self) -> int:
        return self._moe.experts

    def dense_logits(self, tokens: Tokens) -> Iterator[np.ndarray]:
        """Logits after each token, some rows at a time."""
        return self._logits(self._dense_model, self._hidden(self._dense_model, self._dense, None, tokens))

    def moe_logits(self, tokens: Tokens, topk: int) -> Iterator[np.ndarray]:
        """The same of the mixture of experts in one process."""
        feed_forward = OneProcessMoe(self._moe, topk)
        return self._logits(self._moe_model, self._hidden(self._moe_model, feed_forward, topk, tokens))

    def logits(self, tokens: Tokens, topk: int) -> Iterator[np.ndarray]:
        """What ranks with this topk are compared with."""
        return self.dense_logits(tokens) if topk == self.experts else self.moe_logits(tokens, topk)

    def _hidden(
        self, model: Llama, feed_forward: FeedForward, topk: int | None, tokens: Tokens
    ) -> np.ndarray:
        key = (topk, tuple(tokens))
        if key not in self._known:
            self._known[key] = read_through(model, feed_forward, tokens)
        return self._known[key]

    @staticmethod
    def _logits(model: Llama, hidden: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(hidden), LOGIT_ROWS):
            yield model.logits(hidden[start : start + LOGIT_ROWS])


def read_through(model: Llama, feed_forward: FeedForward, tokens: Tokens) -> np.ndarray:
    """Normed hidden states after each of the given tokens, (tokens, hidden)."""
    cache = KvCache(model.config, len(tokens))
    chunks = [Chunk(tokens[start : start + CHUNK], cache) for start in range(0, len(tokens), CHUNK)]
    return np.concatenate([model.forward([chunk], feed_forward) for chunk in chunks])


def perplexity(logits: Iterator[np.ndarray], tokens: Tokens) -> float:
    """How many tokens, as it were, the model hesitates between: exp of the mean of -log p(next token)."""
    following = iter(tokens[1:])
    surprise = [
        np.log(np.exp(row - row.max()).sum(dtype=np.float64)) + row.max() - row[token]
        for rows in logits
        # Rows first: where a block of rows ends, zip must not have taken a token yet. The text's last row predicts
        # a token beyond it and is dropped.
        for row, token in zip(rows, following, strict=False)
    ]
    return float(np.exp(np.mean(surprise)))
