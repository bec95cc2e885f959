"""What dispatch and combine must return, in slow and obvious numpy: the reference that the tests compare with.

Not here: anything that XCCL computes. This file imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CANONICAL_NAN = {"float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0}


@dataclass(frozen=True)
class Shape:
    """The arguments of an ExpertParallel, in its order."""

    num_experts: int
    hidden: int
    max_tokens: int
    topk: int
    dtype: str = "bfloat16"
    layout: str = "expert"
    dispatch_quant: str | None = None
    combine_quant: str | None = None


@dataclass(frozen=True)
class Batch:
    """What one rank gives to one dispatch."""

    x: np.ndarray[Any, Any]  # (tokens, hidden)
    topk_idx: np.ndarray[Any, Any]  # (tokens, topk)
    topk_weights: np.ndarray[Any, Any]  # (tokens, topk) float32


@dataclass(frozen=True)
class Rows:
    """What one rank gets from a dispatch."""

    x: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    src_rank: np.ndarray[Any, Any]
    src_token: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]
    index: np.ndarray[Any, Any]  # of each row, in x


def experts_of(rank: int, ranks: int, num_experts: int) -> list[int]:
    """Contiguous blocks; where they do not divide, the first ranks host one more."""
    sizes = [num_experts // ranks + (1 if r < num_experts % ranks else 0) for r in range(ranks)]
    first = sum(sizes[:rank])
    return list(range(first, first + sizes[rank]))


def even(ranks: int, num_experts: int) -> list[list[int]]:
    """Where experts are if nothing else is said: for each rank the experts in its slots."""
    return [experts_of(rank, ranks, num_experts) for rank in range(ranks)]


def with_shared(batch: Batch, shared: Sequence[int]) -> Batch:
    """The same batch, every token of which names the shared experts after those that it names."""
    more = (len(batch.x), len(shared))
    return Batch(
        batch.x,
        np.concatenate([batch.topk_idx, np.broadcast_to(np.array(shared, batch.topk_idx.dtype), more)], 1),
        np.concatenate([batch.topk_weights, np.ones(more, np.float32)], 1),
    )


def place_of(
    placement: Sequence[Sequence[int]], expert: int, source: int, token: int, shared: bool
) -> tuple[int, int]:
    """(rank, slot) of the replica that takes a token of that rank: in turn; a shared one on its own rank goes first."""
    replicas = [(r, s) for r, slots in enumerate(placement) for s, one in enumerate(slots) if one == expert]
    at_home = [place for place in replicas if place[0] == source]
    return at_home[0] if shared and at_home else replicas[(source + token) % len(replicas)]


def dispatched(
    rank: int,
    batches: Sequence[Batch],
    shape: Shape,
    placement: Sequence[Sequence[int]] | None = None,
    shared: Sequence[int] = (),
) -> Rows:
    """The rows that `rank` gets, in the order (slot of an expert, source rank, source token, slot of the token)."""
    placement = placement or even(len(batches), shape.num_experts)
    batches = [with_shared(batch, shared) for batch in batches]
    origins = []
    counts = []
    for place, expert in enumerate(placement[rank]):
        before = len(origins)
        for source, batch in enumerate(batches):
            for token in range(len(batch.x)):
                for slot in range(shape.topk + len(shared)):
                    if expert == -1 or batch.topk_idx[token, slot] != expert:
                        continue
                    if place_of(placement, expert, source, token, slot >= shape.topk) == (rank, place):
                        origins.append((source, token, slot))
        counts.append(len(origins) - before)
    here = [(source, token) for source, token, _ in origins]
    in_x = sorted(set(here)) if shape.layout == "token" else here
    index = [in_x.index(row) for row in here] if shape.layout == "token" else range(len(here))
    rows = [batches[source].x[token] for source, token in in_x]
    return Rows(
        x=np.array(rows, DTYPES[shape.dtype]).reshape(len(rows), shape.hidden),
        index=np.array(index, np.int32),
        counts=np.array(counts, np.int64),
        src_rank=np.array([source for source, _, _ in origins], np.int32),
        src_token=np.array([token for _, token, _ in origins], np.int32),
        weights=np.array([batches[s].topk_weights[token, slot] for s, token, slot in origins], np.float32),
    )


def combined(
    batch: Batch, shape: Shape, expert: Callable[[int, Any], Any] | None = None
) -> np.ndarray[Any, Any]:
    """The sums that the owner of `batch` gets when expert e turns a row into expert(e, row).

    The arithmetic contract: in top-k order, acc = round32(w * row) for the first expert, then
    acc = round32(acc + round32(w * row)); one rounding to the dtype of the rows at the end; NaN is canonical.
    """
    y = np.zeros(batch.x.shape, np.float32)
    for token in range(len(batch.x)):
        terms = []
        for slot in range(shape.topk):
            chosen = int(batch.topk_idx[token, slot])
            if chosen >= 0:
                row = batch.x[token] if expert is None else expert(chosen, batch.x[token])
                with np.errstate(all="ignore"):
                    terms.append(batch.topk_weights[token, slot] * row.astype(np.float32))
        if terms:
            acc = terms[0]
            for term in terms[1:]:
                with np.errstate(all="ignore"):
                    acc = acc + term
            y[token] = acc
    return rounded(y, shape.dtype)


# Of each quantisation: the dtype of codes, the code of the largest element of a block, and the size of that.
CODES = {
    "int8": (np.dtype(np.int8), np.float32(127), None),
    "fp8_e4m3": (np.dtype(ml_dtypes.float8_e4m3fn), np.float32(448), 128),
}


def quantised(x: np.ndarray[Any, Any], quant: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Codes and scales of rows, (rows, hidden) and (rows, blocks): docs/quantisation.md in ten lines."""
    code, top, size = CODES[quant]
    rows, hidden = x.shape
    size = size or hidden
    padded = np.zeros(
        (rows, -(-hidden // size) * size), np.float32
    )  # of a shorter last block: zeros change nothing
    padded[:, :hidden] = x
    blocks = padded.reshape(rows, padded.shape[1] // size, size)
    with np.errstate(all="ignore"):
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        span = np.clip(largest, np.float32(2.0**-117), np.nextafter(np.finfo(np.float32).max, np.float32(0)))
        codes = np.where(np.isfinite(largest), blocks * (top / span), np.float32(0))
        scales = np.where(np.isfinite(largest), span / top, np.float32(np.nan))
    codes = (np.rint(codes) if quant == "int8" else codes).astype(code)
    return codes.reshape(padded.shape)[:, :hidden], scales[:, :, 0]


def dequantised(codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What codes and scales (as `quantised` gives them) stand for: float32."""
    hidden = codes.shape[1]
    size = 128 if codes.dtype == CODES["fp8_e4m3"][0] else hidden
    with np.errstate(all="ignore"):
        return np.repeat(scales, size, axis=1)[:, :hidden] * codes.astype(np.float32)


def rounded(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """float32 values as `dtype`, rounded to nearest even, every NaN the canonical one."""
    with np.errstate(all="ignore"):
        out = values.astype(DTYPES[dtype])
    bits(out)[np.isnan(values)] = CANONICAL_NAN[dtype]
    return out


def scale(expert: int, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The expert of most tests: multiplies by a number of its own, so that a row from a wrong one is noticed."""
    with np.errstate(all="ignore"):
        return (rows.astype(np.float32) * np.float32(0.5 + expert)).astype(rows.dtype)


def bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same memory as unsigned integers, so that NaN equals itself and 0.0 differs from -0.0."""
    return np.asarray(array).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def same_bits(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], what: str = "") -> None:
    """Asserts that two arrays agree in dtype, shape and every bit."""
    assert found.dtype == expected.dtype, what
    np.testing.assert_array_equal(bits(found), bits(expected), err_msg=what, strict=True)


def ordinary_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Normally distributed numbers."""
    return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])


def any_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Every pattern of bits is as likely as any other: NaN, infinities, denormals, zeros of both signs."""
    kind = np.uint32 if dtype == "float32" else np.uint16
    raw = rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    # Of 32 random bits few are anything special, so every fourth number gets an extreme exponent.
    mantissa = {"float32": 23, "float16": 10, "bfloat16": 7}[dtype]
    sign_and_mantissa = kind((1 << (raw.dtype.itemsize * 8 - 1)) | ((1 << mantissa) - 1))
    full = kind(~sign_and_mantissa & kind(np.iinfo(kind).max))
    extreme = rng.choice(np.array([0, 0, full], kind), shape)
    plain = rng.integers(0, 2, shape).astype(bool)  # powers of two, zeros and infinities
    special = (raw & sign_and_mantissa) | extreme
    special = np.where(plain, special & full | raw & kind(1 << (raw.dtype.itemsize * 8 - 1)), special)
    return np.where(rng.integers(0, 4, shape) == 0, special, raw).astype(kind).view(DTYPES[dtype])


def random_batch(rng: np.random.Generator, shape: Shape, tokens: int | None = None) -> Batch:
    """A batch of some tokens (0 to max_tokens if not given) that choose experts at random, or none (-1)."""
    tokens = int(rng.integers(0, shape.max_tokens, endpoint=True)) if tokens is None else tokens
    return Batch(
        x=ordinary_values(rng, (tokens, shape.hidden), shape.dtype),
        topk_idx=rng.integers(-1, shape.num_experts, (tokens, shape.topk)),
        topk_weights=rng.standard_normal((tokens, shape.topk), np.float32),
    )


def random_batches(seed: object, shape: Shape, ranks: int) -> list[Batch]:
    """One batch for every rank; all ranks make the same ones from the same seed."""
    rng = np.random.default_rng(seed)  # type: ignore[arg-type]
    return [random_batch(rng, shape) for _ in range(ranks)]
