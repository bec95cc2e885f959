"""The parts of a Llama model that every rank runs for its own prompts, in plain numpy float32.

RMSNorm, rotary positions, grouped-query attention with its KV cache, and the output logits.
Called by the ranks (serving.py) and by the one-process references (truth.py).
Not here: the feed-forward network. `forward` takes it as a function, and that one seam is where
the dense model, the one-process mixture of experts and the distributed one differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gguf_file import ModelConfig

# feed_forward(layer, normed hidden states (tokens, hidden)) -> its output (tokens, hidden)
FeedForward = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Backbone:
    """Every weight outside the feed-forward networks; arrays may be memory-mapped."""

    config: ModelConfig
    embedding: np.ndarray  # (vocabulary, hidden); also the output matrix
    attn_norm: np.ndarray  # (layers, hidden)
    qkv: np.ndarray  # (layers, hidden + 2 * kv_hidden, hidden)
    attn_out: np.ndarray  # (layers, hidden, hidden)
    ffn_norm: np.ndarray  # (layers, hidden)
    output_norm: np.ndarray  # (hidden,)


class KvCache:
    """Keys and values of one sequence, for all layers, in memory for `capacity` tokens."""

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        shape = (config.layers, config.kv_heads, capacity, config.head_dim)
        self.keys = np.zeros(shape, np.float32)
        self.values = np.zeros(shape, np.float32)
        self.length = 0

    def append(self, layer: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Store (tokens, kv_heads, head_dim) behind the tokens already there.

        `length` moves on only when all layers have been through (see `forward`).
        """
        end = self.length + len(keys)
        self.keys[layer, :, self.length : end] = keys.transpose(1, 0, 2)
        self.values[layer, :, self.length : end] = values.transpose(1, 0, 2)


@dataclass
class Chunk:
    """The next tokens of one sequence: many while its prompt is read, one while it is written."""

    tokens: Sequence[int]
    cache: KvCache


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Each row divided by its root mean square, times weight."""
    mean_square = np.einsum("th,th->t", x, x) / x.shape[1]
    return x * (1.0 / np.sqrt(mean_square + eps))[:, None] * weight


def rotations(config: ModelConfig, positions: np.ndarray) -> np.ndarray:
    """Rotary embedding as unit complex numbers, (tokens, 1, head_dim / 2).

    GGUF stores q and k so that the two coordinates turned together lie side by side: a pair is
    then one complex number, and turning it is one multiplication.
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-np.arange(half) / half)
    angle = positions[:, None].astype(np.float64) * frequency
    return np.exp(1j * angle).astype(np.complex64)[:, None, :]


def rotate(heads: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Turn (tokens, heads, head_dim) by `rotations`."""
    return (np.ascontiguousarray(heads).view(np.complex64) * turn).view(np.float32)


def softmax_in_place(scores: np.ndarray) -> None:
    """Softmax over the last axis."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def attend(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Causal attention of the newest tokens of one sequence over all of them.

    queries (tokens, heads, head_dim); keys and values (kv_heads, length, head_dim), in which the
    last `tokens` entries belong to the queries themselves. Returns (tokens, heads * head_dim).
    """
    tokens, heads, head_dim = queries.shape
    kv_heads, length, _ = keys.shape
    group = heads // kv_heads
    # Heads that share a key head become rows of one matrix: one product per key head.
    grouped = queries.reshape(tokens, kv_heads, group, head_dim).transpose(1, 2, 0, 3)
    scores = grouped.reshape(kv_heads, group * tokens, head_dim) @ keys.transpose(0, 2, 1)
    scores *= np.float32(head_dim**-0.5)
    if tokens > 1:
        future = np.triu(np.ones((tokens, length), bool), k=length - tokens + 1)
        scores.reshape(kv_heads, group, tokens, length)[:, :, future] = -np.inf
    softmax_in_place(scores)
    mixed = (scores @ values).reshape(kv_heads, group, tokens, head_dim)
    return mixed.transpose(2, 0, 1, 3).reshape(tokens, heads * head_dim)


class Llama:
    """A backbone that runs chunks of several sequences together, given a feed-forward function."""

    def __init__(self, backbone: Backbone) -> None:
        self.weights = backbone
        self.config = backbone.config

    def attention(self, layer: int, x: np.ndarray, chunks: Sequence[Chunk], turn: np.ndarray) -> np.ndarray:
        """The attention block's contribution to the hidden states of all chunks' tokens."""
        weights, config = self.weights, self.config
        normed = rms_norm(x, weights.attn_norm[layer], config.norm_eps)
        qkv = (normed @ weights.qkv[layer].T).reshape(len(x), -1, config.head_dim)
        turned = rotate(qkv[:, : config.heads + config.kv_heads], turn)
        queries, keys = turned[:, : config.heads], turned[:, config.heads :]
        values = qkv[:, config.heads + config.kv_heads :]
        mixed = np.empty((len(x), config.hidden), np.float32)
        start = 0
        for chunk in chunks:
            end, cache = start + len(chunk.tokens), chunk.cache
            cache.append(layer, keys[start:end], values[start:end])
            seen = cache.length + end - start
            mixed[start:end] = attend(
                queries[start:end], cache.keys[layer, :, :seen], cache.values[layer, :, :seen]
            )
            start = end
        return mixed @ weights.attn_out[layer].T

    def forward(self, chunks: Sequence[Chunk], feed_forward: FeedForward) -> np.ndarray:
        """Run all layers on the chunks' tokens; returns normed hidden states (tokens, hidden).

        No chunks is a valid call: the feed-forward function is then called with zero tokens, which
        is how a rank without work takes part in everybody else's step.
        """
        weights, config = self.weights, self.config
        tokens = np.array([token for chunk in chunks for token in chunk.tokens], np.intp)
        x = weights.embedding[tokens]
        turn = rotations(config, _positions(chunks))
        for layer in range(config.layers):
            if chunks:
                x = x + self.attention(layer, x, chunks, turn)
            normed = rms_norm(x, weights.ffn_norm[layer], config.norm_eps)
            x = x + feed_forward(layer, normed)
        for chunk in chunks:
            chunk.cache.length += len(chunk.tokens)
        return rms_norm(x, weights.output_norm, config.norm_eps)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Next-token scores (tokens, vocabulary) of `forward`'s rows."""
        return hidden @ self.weights.embedding.T


def _positions(chunks: Sequence[Chunk]) -> np.ndarray:
    parts = [chunk.cache.length + np.arange(len(chunk.tokens)) for chunk in chunks]
    return np.concatenate([np.empty(0, np.intp), *parts])
