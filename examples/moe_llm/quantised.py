"""Rows that travel quantised: what an expert makes of the codes it receives, and how many bytes a row takes.

The contract is in docs/quantisation.md. Called by local_experts.py and colocated.py. Not here: what it does to the
text (difference.py).
"""

from __future__ import annotations

import numpy as np

FP8_BLOCK = 128  # elements that share a scale; with int8 the whole row does
FLOAT_BYTES = 4


def dequantised(codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """float32 rows of codes and their scales; rows that are float32 already stay as they are."""
    if scales is None:
        return codes
    by_row = scales[:, None] if scales.ndim == 1 else scales
    block = codes.shape[1] if scales.ndim == 1 else FP8_BLOCK
    return codes.astype(np.float32) * np.repeat(by_row, block, axis=1)[:, : codes.shape[1]]


def row_bytes(hidden: int, quant: str | None) -> int:
    """What a row takes between ranks, its scales with it."""
    if quant is None:
        return hidden * FLOAT_BYTES
    return hidden + FLOAT_BYTES * (1 if quant == "int8" else -(-hidden // FP8_BLOCK))
