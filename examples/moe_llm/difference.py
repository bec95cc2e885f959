"""What quantised rows do to the model: its logits and its perplexity beside those of unquantised rows.

Called by demo.py on the logits that the same ranks left with and without. Not here: the bounds (checks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from job import Request, logits_file
from truth import perplexity

ROWS = 64  # in memory at once, 200 kB each


@dataclass(frozen=True)
class Difference:
    """Of the logits after every token of some texts."""

    largest: float
    mean: float
    divergence: float  # Kullback-Leibler, nats a token: how far predictions are from those without
    tokens: int
    same_choice: int  # tokens after which both find the same next token likeliest


def difference(requests: Sequence[Request], topk: int, plain: Path, quantised: Path) -> Difference:
    """Between what two runs left in their folders."""
    largest, total, values, divergence, same, tokens = 0.0, 0.0, 0, 0.0, 0, 0
    for request in requests:
        ours, theirs = (
            np.load(logits_file(folder, topk, request.id), mmap_mode="r") for folder in (plain, quantised)
        )
        for start in range(0, len(ours), ROWS):
            a, b = ours[start : start + ROWS], theirs[start : start + ROWS]
            apart = np.abs(a - b)
            largest = float(np.maximum(largest, apart.max()))  # unlike max(), keeps a NaN
            total += float(apart.sum(dtype=np.float64))
            divergence += float(_divergences(a, b).sum())
            same += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
            values, tokens = values + a.size, tokens + len(a)
    return Difference(largest, total / values, divergence / tokens, tokens, same)


def _divergences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    return (np.exp(log_a) * (log_a - log_b)).sum(axis=1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def perplexity_of(request: Request, topk: int, folder: Path) -> float:
    """As the ranks' logits have it."""
    return perplexity(iter([np.load(logits_file(folder, topk, request.id), mmap_mode="r")]), request.tokens)


def agreement(
    requests: Sequence[Request], topk: int, folder: Path, prompts: Sequence[Request]
) -> list[tuple[int, int]]:
    """(tokens before the first that the other run would not have written, tokens) of each text.

    `folder` has the other run's logits over these texts. Up to its first other choice a text that it writes by itself
    is the same one, so this is where both part.
    """
    found = []
    for request, prompt in zip(requests, prompts, strict=True):
        logits = np.load(logits_file(folder, topk, request.id), mmap_mode="r")
        written = np.array(request.tokens[len(prompt.tokens) :])
        other = logits[len(prompt.tokens) - 1 : -1].argmax(axis=1) != written
        found.append((int(other.argmax()) if other.any() else len(written), len(written)))
    return found
