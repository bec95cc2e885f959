"""Whether the ranks computed what one process computes. A check that fails makes the demo fail.

Called by demo.py. Compared are logits over the whole vocabulary after every token (teacher forced: both sides
read the same text) and the tokens that the ranks chose. Not here: the one-process side itself (truth.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from balance import above_mean, balance_of, describe_moved
from difference import Difference
from display import Answer
from job import Form, RankStats, Request, logits_file
from truth import LOGIT_ROWS, Truth


@dataclass(frozen=True)
class Tolerance:
    """How far logits of float32 rows may be from one process's: any of them, and all in the mean."""

    largest: float
    mean: float


# Logits reach about 40. Both sides add the same float32 products in another order through 30 layers, which moves no
# logit by more than 2e-4 with all experts. With fewer, a sum whose last bit differs moves the weight of an expert at
# the edge of the choice, 50 times as much (experts.SOFT_EDGE), and then what the next layers choose: single logits by
# up to 0.4 with k = 16, but 1e-3 in the mean. One expert of 960 that returns zeros moves some by 1.4 or more, and the
# mean by 0.03 or more: --break-expert.
ALL_EXPERTS, FEWER_EXPERTS = Tolerance(0.01, 0.001), Tolerance(1.0, 0.01)


def logit_tolerance(topk: int, experts: int) -> Tolerance:
    """With so many experts for each token."""
    return ALL_EXPERTS if topk == experts else FEWER_EXPERTS


@dataclass(frozen=True)
class Bound:
    """How much quantised rows may change: any logit, the divergence in nats a token, the perplexity in proportion."""

    logit: float
    divergence: float
    perplexity: float


# Stated, not derived: a bound of each row is (docs/quantisation.md), but 30 layers of worst cases would allow anything.
# About half as much again as was measured: int8 12.5, 0.15 nats and 4 to 8 % (as the text is), fp8_e4m3 9.8, 0.04, 2 %.
QUANT_BOUNDS = {"int8": Bound(20.0, 0.25, 0.12), "fp8_e4m3": Bound(16.0, 0.07, 0.04)}


@dataclass(frozen=True)
class Check:
    """One statement and whether it holds."""

    what: str
    ok: bool
    detail: str
    difference: float = 0.0

    def __str__(self) -> str:
        return f"{'ok    ' if self.ok else 'FAILED'} {self.what}: {self.detail}"


def _compared(what: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]], tolerance: Tolerance) -> Check:
    largest, total, values = 0.0, 0.0, 0
    for mine, truth in pairs:
        apart = np.abs(mine - truth)
        # np.maximum, unlike max(), keeps a NaN.
        largest = float(np.maximum(largest, apart.max()))
        total += float(apart.sum(dtype=np.float64))
        values += truth.size
    mean = total / max(values, 1)
    # Written so that NaN fails.
    ok = values > 0 and largest <= tolerance.largest and mean <= tolerance.mean
    detail = (
        f"of {values / 1e6:.1f} million logits the largest difference is {largest:.1e} (tolerance "
        f"{tolerance.largest:g}), the mean {mean:.1e} ({tolerance.mean:g})"
    )
    return Check(what, ok, detail, largest)


def check_split(truth: Truth, requests: list[Request]) -> Check:
    """All experts together, in one process, are the dense model: the split lost and doubled nothing."""
    pairs = (
        pair
        for request in requests
        for pair in zip(
            truth.moe_logits(request.tokens, truth.experts), truth.dense_logits(request.tokens), strict=True
        )
    )
    return _compared("one process, k = E, against the dense model", pairs, ALL_EXPERTS)


def check_logits(truth: Truth, requests: list[Request], topk: int, ranks: str, folder: Path) -> Check:
    """The teacher-forced logits that these ranks left in `folder`, against one process."""
    pairs = (
        pair
        for request in requests
        for pair in _beside_truth(
            np.load(logits_file(folder, topk, request.id), mmap_mode="r"), truth.logits(request.tokens, topk)
        )
    )
    against = "the dense model" if topk == truth.experts else "the same experts in one process"
    return _compared(f"{ranks}, k = {topk}, against {against}", pairs, logit_tolerance(topk, truth.experts))


def check_bits(requests: list[Request], topk: int, ranks: str, folder: Path, colocated: Path) -> Check:
    """The same logits as those of ranks that all have attention and unmoved experts, bit for bit."""
    differing = values = 0
    for request in requests:
        mine, theirs = (
            np.load(logits_file(where, topk, request.id), mmap_mode="r") for where in (folder, colocated)
        )
        for start in range(0, len(theirs), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            differing += int((mine[rows].view(np.uint32) != theirs[rows].view(np.uint32)).sum())
        values += theirs.size
    return Check(
        f"{ranks}, k = {topk}, bit for bit those of the colocated form",
        values > 0 and differing == 0,
        f"{differing} of {values / 1e6:.1f} million logits differ",
    )


def check_traffic(stats: list[RankStats], form: Form) -> list[Check]:
    """What ranks counted between attention and experts is what the cost model says."""
    found = [rank.traffic for rank in stats]
    right = sum((t.records, t.fan_out) == (t.model_records, t.model_fan_out) for t in found)
    fan_outs = {t.fan_out for t in found[: form.attention]}
    expected = 1 if found[0].routing == "trampoline" else len(stats) - form.attention
    return [
        Check(
            "records and fan-out as the cost model says",
            right == len(stats) and all(t.records > 0 for t in found),
            f"on {right} of {len(stats)} ranks, {sum(t.records for t in found)} records in all",
        ),
        Check(
            f"fan-out of attention ranks, {found[0].routing}",
            fan_outs == {expected},
            f"{', '.join(map(str, sorted(fan_outs)))}, expected {expected}",
        ),
    ]


def check_moved(stats: list[RankStats], where: str) -> Check:
    """Experts have moved, and the model went on before, during and after."""
    moved = stats[0].moved
    ok = moved is not None and moved.ready is not None and moved.experts > 0 and moved.ready < stats[0].steps
    return Check(f"experts moved while {where}", ok, describe_moved(stats))


def check_balance(stats: list[RankStats]) -> Check:
    """The hottest rank has fewer rows than it would have had of the same rows without any move."""
    what, balance = "hottest rank", balance_of(stats)
    if balance is None:
        return Check(what, False, "no expert moved in time")
    now, else_ = above_mean(balance.after), above_mean(balance.unmoved)
    return Check(what, now < else_, f"{now:.1%} above the mean; unmoved, the same rows make {else_:.1%}")


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
    tolerance: float,
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
