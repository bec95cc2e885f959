"""The dense model in one process, straight from the GGUF file: the truth that k = E is held to.

Called by main.py's checks and by prepare.py. It deliberately never reads the prepared cache, so a
neuron lost or doubled by the split cannot hide on both sides of a comparison.
"""

from __future__ import annotations

import numpy as np
from gguf_file import GgufModel
from llama import Backbone


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    # exp overflows to infinity for very negative x, and x / inf is the right answer, -0.
    with np.errstate(over="ignore"):
        return x / (1.0 + np.exp(-x))


def load_backbone(model: GgufModel) -> Backbone:
    """Everything outside the feed-forward networks, in memory."""
    layers = range(model.config.layers)

    def stack(name: str) -> np.ndarray:
        return np.stack([model.layer_tensor(layer, name) for layer in layers])

    return Backbone(
        config=model.config,
        embedding=model.tensor("token_embd.weight"),
        attn_norm=stack("attn_norm"),
        qkv=np.concatenate([stack("attn_q"), stack("attn_k"), stack("attn_v")], axis=1),
        attn_out=stack("attn_output"),
        ffn_norm=stack("ffn_norm"),
        output_norm=model.tensor("output_norm.weight"),
    )


class DenseFeedForward:
    """SwiGLU with all neurons of a layer at once."""

    def __init__(self, model: GgufModel) -> None:
        self._weights = [
            tuple(model.layer_tensor(layer, f"ffn_{name}") for name in ("gate", "up", "down"))
            for layer in range(model.config.layers)
        ]

    def __call__(self, layer: int, x: np.ndarray) -> np.ndarray:
        gate, up, down = self._weights[layer]
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T
