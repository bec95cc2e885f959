"""Whether the ranks computed what one process computes. A check that fails makes the demo fail.

Called by demo.py. Compared are logits over the whole vocabulary after every token (teacher forced: both sides
read the same text) and the tokens that the ranks chose. Not here: the one-process side itself (truth.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from difference import Difference
from display import Answer
from job import Request, logits_file
from truth import Truth

# Logits reach about 40. Both sides add the same float32 products in another order through 30 layers. That was
# measured to move logits by up to 2e-4 with all experts, and by up to 4e-3 with fewer (the soft edge of the choice,
# experts.SOFT_EDGE, makes more of a small difference), with three sets of BLAS kernels. One expert of 960 that
# returns zeros moves them by whole units: --break-expert.
LOGIT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Bound:
    """How much quantised rows may change: any logit, the divergence in nats a token, the perplexity in proportion."""

    logit: float
    divergence: float
    perplexity: float


# Stated, not derived: a bound of each row is (docs/quantisation.md), but 30 layers of worst cases would allow anything.
# About half as much again as was measured: int8 12.5, 0.15 nats and 4.4 %, fp8_e4m3 9.8, 0.04 and 2.2 %.
QUANT_BOUNDS = {"int8": Bound(20.0, 0.25, 0.07), "fp8_e4m3": Bound(16.0, 0.07, 0.04)}


@dataclass(frozen=True)
class Check:
    """One statement and whether it holds."""

    what: str
    ok: bool
    detail: str
    difference: float = 0.0

    def __str__(self) -> str:
        return f"{'ok    ' if self.ok else 'FAILED'} {self.what}: {self.detail}"


def _within_tolerance(what: str, difference: float, values: int) -> Check:
    # Written so that NaN fails.
    ok = values > 0 and difference <= LOGIT_TOLERANCE
    detail = f"largest difference {difference:.1e} over {values / 1e6:.1f} million logits"
    return Check(what, ok, detail, difference)


def _largest_difference(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, int]:
    difference, values = 0.0, 0
    for mine, truth in pairs:
        # np.maximum, unlike max(), keeps a NaN.
        difference = float(np.maximum(difference, np.abs(mine - truth).max()))
        values += truth.size
    return difference, values


def check_split(truth: Truth, requests: list[Request]) -> Check:
    """All experts together, in one process, are the dense model: the split lost and doubled nothing."""
    difference, values = _largest_difference(
        pair
        for request in requests
        for pair in zip(
            truth.moe_logits(request.tokens, truth.experts), truth.dense_logits(request.tokens), strict=True
        )
    )
    return _within_tolerance("one process, k = E, against the dense model", difference, values)


def check_logits(truth: Truth, requests: list[Request], topk: int, size: int, folder: Path) -> Check:
    """The teacher-forced logits that `size` ranks left in `folder`, against one process."""
    difference, values = _largest_difference(
        pair
        for request in requests
        for pair in _beside_truth(
            np.load(logits_file(folder, topk, request.id), mmap_mode="r"), truth.logits(request.tokens, topk)
        )
    )
    against = "the dense model" if topk == truth.experts else "the same experts in one process"
    return _within_tolerance(
        f"{size} rank{'s' * (size > 1)}, k = {topk}, against {against}", difference, values
    )


def _beside_truth(mine: np.ndarray, truth: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    start = 0
    for rows in truth:
        yield mine[start : start + len(rows)], rows
        start += len(rows)
    if start != len(mine):
        raise ValueError(f"{len(mine)} rows of logits for {start} tokens")


def check_difference(quant: str, found: Difference, before: float, after: float) -> list[Check]:
    """Quantised rows change something, and no more than is stated."""
    bound = QUANT_BOUNDS[quant]
    change = abs(after / before - 1)
    return [
        Check(
            f"{quant} logits",
            0 < found.largest <= bound.logit,
            f"at most {found.largest:.3f} apart, bound {bound.logit:g}",
        ),
        Check(
            f"{quant} predictions",
            found.divergence <= bound.divergence,
            f"KL {found.divergence:.2e} nats, bound {bound.divergence:g}",
        ),
        Check(
            f"{quant} perplexity",
            change <= bound.perplexity,
            f"changes by {change:.2%}, bound {bound.perplexity:.0%}",
        ),
    ]


def check_tokens(
    truth: Truth,
    requests: list[Request],
    answers: list[Answer],
    topk: int,
    tolerance: float = LOGIT_TOLERANCE,
) -> Check:
    """Every generated token is one process's choice too, or too close to it to tell them apart.

    One process reads prompt and answer: after each prefix, its best token must be the one that the ranks wrote,
    and its logit the same. That also holds the ranks to their word behind a token that differs.
    """
    differing, unexcused, difference = 0, 0, 0.0
    for request, answer in zip(requests, answers, strict=True):
        logits = np.concatenate(list(truth.logits(request.tokens + answer.tokens, topk)))
        choices = logits[len(request.tokens) - 1 : -1]
        written = np.array(answer.tokens)
        own = choices[np.arange(len(written)), written]
        best = choices.max(axis=1)
        differing += int((choices.argmax(axis=1) != written).sum())
        # Two logits that may both be off by the tolerance change places within twice that.
        unexcused += int((~(best - own <= 2 * tolerance)).sum())
        difference = float(np.maximum(difference, np.abs(own - np.array(answer.logits)).max()))
    total = sum(len(answer.tokens) for answer in answers)
    ok = total > 0 and unexcused == 0 and difference <= tolerance
    detail = (
        f"{differing} of {total} tokens differ from one process, {unexcused} of them by more than twice the tolerance; "
        f"largest difference of a chosen logit {difference:.1e}"
    )
    return Check(f"generated tokens, k = {topk}", ok, detail, difference)
