"""Rows as int8 and fp8_e4m3: dispatch and combine against the numpy of truth.py, bit for bit; the bound of the error.

The contract is docs/quantisation.md.
"""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ranks import error_of
from test_dispatch_combine import usable_kernels
from truth import (
    CODES,
    DTYPES,
    Batch,
    Shape,
    any_bits,
    combined,
    dequantised,
    dispatched,
    ordinary_values,
    quantised,
    random_batch,
    random_batches,
    rounded,
    same_bits,
    scale,
    with_shared,
)

import xccl

SHAPE = Shape(num_experts=5, hidden=300, max_tokens=6, topk=3)
QUANTS = [
    ("int8", None),
    (None, "int8"),
    ("fp8_e4m3", "int8"),
    ("int8", "fp8_e4m3"),
    ("fp8_e4m3", "fp8_e4m3"),
]


def open_ep(comm, shape, **options):
    return xccl.ExpertParallel(
        comm,
        shape.num_experts,
        shape.hidden,
        shape.max_tokens,
        shape.topk,
        shape.dtype,
        layout=shape.layout,
        dispatch_quant=shape.dispatch_quant,
        combine_quant=shape.combine_quant,
        **options,
    )


def in_blocks(scales, quant):
    """`d.scales` as (rows, blocks) whatever the quantisation."""
    return np.array(scales)[:, None] if quant == "int8" else np.array(scales)


def numbers(d, shape):
    """What d.x stands for, rounded to the dtype of rows, one for each token and expert."""
    x = np.array(d.x)
    if shape.dispatch_quant:
        x = rounded(dequantised(x, in_blocks(d.scales, shape.dispatch_quant)), shape.dtype)
    return x[d.index]


def one_round(ep, batch, shape, routing=None):
    """Dispatch, the experts' work, combine. Returns codes, scales and sums."""
    given = (batch.x,) if routing else (batch.x, batch.topk_idx, batch.topk_weights)
    with ep.dispatch(*given, routing=routing) as d:
        rows, results = numbers(d, shape), np.empty((d.num_rows, shape.hidden), ep.dtype)
        for i, expert in enumerate(ep.local_experts):
            results[d.rows_of(i)] = scale(expert, rows[d.rows_of(i)])
        scales = None if d.scales is None else np.array(d.scales)
        return np.array(d.x), scales, np.array(ep.combine(results, d)), d.routing


def rounds_of(comm, shape, batches):
    with open_ep(comm, shape) as ep:
        return one_round(ep, batches[comm.rank], shape)[:3]


def true_sums(batch, shape):
    """What combine must return: `scale` of what arrives, as combine receives it."""

    def expert(number, row):
        if shape.dispatch_quant:
            row = rounded(dequantised(*quantised(row[None], shape.dispatch_quant)), shape.dtype)[0]
        row = scale(number, row)
        return dequantised(*quantised(row[None], shape.combine_quant))[0] if shape.combine_quant else row

    return combined(batch, shape, expert)


def compare(found, shape, batches, placement=None, shared=()):
    """What every rank got with the truth."""
    extended = replace(shape, topk=shape.topk + len(shared))
    for rank, (x, scales, y) in enumerate(found):
        expected = dispatched(rank, batches, shape, placement, shared).x
        if quant := shape.dispatch_quant:
            expected, expected_scales = quantised(expected, quant)
            same_bits(in_blocks(scales, quant), expected_scales, f"scales on rank {rank}")
            assert scales.ndim == (1 if quant == "int8" else 2)
        else:
            assert scales is None
        same_bits(x, expected, f"rows on rank {rank}")
        same_bits(y, true_sums(with_shared(batches[rank], shared), extended), f"sums on rank {rank}")


def check(ranks, shape, batches):
    compare(ranks.run(rounds_of, len(batches), shape, batches), shape, batches)


def wild_values(rng, shape, dtype):
    """Rows of very different size, with numbers far below the largest, zeros, and in some rows NaN and infinities."""
    with np.errstate(all="ignore"):
        size = np.exp2(rng.integers(-150, 128, (shape[0], 1)).astype(np.float64))
        fade = np.exp2(-rng.integers(0, 20, shape).astype(np.float64))
        x = (rng.standard_normal(shape) * size * fade).astype(np.float32).astype(DTYPES[dtype])
    x[rng.random(shape) < 0.05] = 0
    special = any_bits(rng, shape, dtype)
    return np.where((rng.random((shape[0], 1)) < 0.2) & (rng.random(shape) < 0.01), special, x)


@st.composite
def rounds(draw):
    """A shape, a quantisation each way, and one batch per rank."""
    dispatch_quant, combine_quant = draw(st.sampled_from(QUANTS), "quantisation")
    shape = Shape(
        num_experts=draw(st.integers(1, 7), "num_experts"),
        hidden=draw(st.integers(1, 20) | st.sampled_from([127, 128, 129, 256, 600, 1100]), "hidden"),
        max_tokens=draw(st.integers(1, 9), "max_tokens"),
        topk=draw(st.integers(1, 4), "topk"),
        dtype=draw(st.sampled_from(list(DTYPES)), "dtype"),
        layout=draw(st.sampled_from(["expert", "token"]), "layout"),
        dispatch_quant=dispatch_quant,
        combine_quant=combine_quant,
    )
    values = draw(st.sampled_from([ordinary_values, wild_values]), "values")
    batches = []
    for _ in range(draw(st.integers(1, 4), "ranks")):
        tokens = draw(st.integers(0, shape.max_tokens))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        batches.append(
            Batch(
                x=values(rng, (tokens, shape.hidden), shape.dtype),
                topk_idx=rng.integers(-1, shape.num_experts, (tokens, shape.topk)),
                topk_weights=ordinary_values(rng, (tokens, shape.topk), "float32"),
            )
        )
    return shape, batches


@hypothesis.given(rounds())
@hypothesis.settings(max_examples=30)
def test_any_round_gives_the_codes_scales_and_sums_of_the_truth(ranks, job):
    check(ranks, *job)


@pytest.mark.parametrize("layout", ["expert", "token"])
@pytest.mark.parametrize("quants", QUANTS, ids=str)
def test_both_layouts_and_every_quantisation(ranks, quants, layout):
    shape = replace(SHAPE, layout=layout, dispatch_quant=quants[0], combine_quant=quants[1])
    check(ranks, shape, random_batches(1, shape, 3))


@pytest.mark.parametrize("tokens", [[0, 4, 0], [0, 0], [5]], ids=str)
@pytest.mark.parametrize("quant", CODES)
def test_ranks_without_tokens_and_a_rank_alone(ranks, quant, tokens):
    shape = replace(SHAPE, dispatch_quant=quant, combine_quant=quant)
    rng = np.random.default_rng(4)
    check(ranks, shape, [random_batch(rng, shape, count) for count in tokens])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", usable_kernels())
def test_every_instruction_set_gives_the_same_bits(threads, name, dtype):
    for quant in CODES:
        for hidden in (1, 31, 64, 127, 128, 200, 1000, 7 * 128):
            shape = Shape(4, hidden, 16, 4, dtype, dispatch_quant=quant, combine_quant=quant)
            rng = np.random.default_rng(hidden)
            batches = [
                Batch(
                    wild_values(rng, (16, hidden), dtype),
                    rng.integers(-1, 4, (16, 4)),
                    any_bits(rng, (16, 4), "float32"),
                )
                for _ in range(2)
            ]
            check(threads.variables(XCCL_KERNELS=name), shape, batches)


def codes_of(comm, quant, x):
    """The codes and scales that dispatch makes of rows, and what combine makes of the same rows."""
    tokens, hidden = x.shape
    shape = Shape(1, hidden, max(tokens, 1), 1, x.dtype.name, dispatch_quant=quant, combine_quant=quant)
    with open_ep(comm, shape) as ep:
        d = ep.dispatch(x, np.zeros((tokens, 1), np.int64), np.ones((tokens, 1), np.float32))
        y = ep.combine(x, d)
        return np.array(d.x), in_blocks(d.scales, quant), np.array(y)


LARGEST = np.finfo(np.float32).max
TINY = np.float32(2.0**-117)
# Rows of four, and their codes and scales by hand.
SPECIAL = {
    "zeros have the smallest scale": ([0, -0.0, 0, 0], [0, 0, 0, 0], TINY / np.float32(127)),
    "the largest of a row is 127": ([1, -1, 0.5, 0.25], [127, -127, 64, 32], np.float32(1) / np.float32(127)),
    "halves go to the even code": ([127, 0.5, 1.5, -2.5], [127, 0, 2, -2], np.float32(1)),
    "a NaN makes the row NaN": ([1, np.nan, 2, 3], [0, 0, 0, 0], np.float32(np.nan)),
    "so does an infinity": ([1, 2, -np.inf, 3], [0, 0, 0, 0], np.float32(np.nan)),
    "what is far below 2**-117 becomes zero": (
        [2.0**-140, 0, 0, -(2.0**-149)],
        [0, 0, 0, 0],
        TINY / np.float32(127),
    ),
    "what is not far below is kept": (
        [2.0**-120, 0, 0, -(2.0**-122)],
        [16, 0, 0, -4],
        TINY / np.float32(127),
    ),
    "the largest float does not become infinite": (
        [LARGEST, 0, 0, -LARGEST],
        [127, 0, 0, -127],
        np.nextafter(LARGEST, np.float32(0)) / np.float32(127),
    ),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_special_values(threads, case):
    row, codes, the_scale = SPECIAL[case]
    [(found, scales, y)] = threads.run(codes_of, 1, "int8", np.array([row], np.float32))
    same_bits(found, np.array([codes], np.int8))
    same_bits(scales, np.array([[the_scale]], np.float32))
    # Nothing lies: what is NaN or infinite comes back as NaN, all else as a finite number.
    assert np.isnan(y).all() if np.isnan(the_scale) else np.isfinite(y).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_in_fp8_a_block_that_is_not_finite_does_not_touch_the_others(threads, bad):
    x = np.ones((1, 300), np.float32)
    x[0, 130] = bad
    [(codes, scales, y)] = threads.run(codes_of, 1, "fp8_e4m3", x)
    assert np.isnan(scales[0]).tolist() == [False, True, False]
    assert np.isnan(y[0, 128:256]).all()
    assert (codes[0, 128:256].astype(np.float32) == 0).all()
    np.testing.assert_allclose(np.delete(y, np.s_[128:256], axis=1), 1, rtol=1e-6)


# How far round32(scale * code) may lie from an element; docs/quantisation.md derives it. `u` is float32's rounding.
U = 2.0**-24


def bound_of_error(x, quant):
    x = np.abs(x.astype(np.float64))
    size = CODES[quant][2] or x.shape[1]
    span = np.repeat(
        np.stack([x[:, at : at + size].max(axis=1) for at in range(0, x.shape[1], size)], axis=1),
        size,
        axis=1,
    )[:, : x.shape[1]]
    span = np.maximum(span, 2.0**-117)
    if quant == "int8":
        return span * (1 / 254 + 6 * U)
    return np.maximum(x / 16, span / 458752) + 6 * U * x + 2.0**-149


@st.composite
def rows_of_floats(draw):
    """Rows for which hypothesis looks for the largest error, in units of the bound."""
    hidden = draw(st.sampled_from([1, 3, 127, 128, 130]))
    dtype = draw(st.sampled_from(list(DTYPES)))
    any_float = st.floats(width=32 if dtype == "float32" else 16, allow_nan=False, allow_infinity=False)
    exponent = draw(st.integers(-149, 111)) if dtype != "float16" else 0
    small = draw(hnp.arrays(np.float32, (2, hidden), elements=any_float))
    with np.errstate(all="ignore"):
        x = np.ldexp(small.astype(np.float64), exponent).astype(np.float32).astype(DTYPES[dtype])
    return np.where(np.isfinite(x.astype(np.float32)), x, np.zeros_like(x))


@pytest.mark.parametrize("quant", CODES)
@hypothesis.given(rows_of_floats())
@hypothesis.settings(max_examples=200)
def test_no_element_is_off_by_more_than_the_bound(threads, quant, x):
    [(codes, scales, y)] = threads.run(codes_of, 1, quant, x)
    error = np.abs(dequantised(codes, scales).astype(np.float64) - x.astype(np.float64))
    used = float((error / bound_of_error(x, quant)).max())
    hypothesis.target(used)
    assert used <= 1
    same_bits(y, rounded(dequantised(codes, scales), x.dtype.name), "a sum of one row of weight one")


@pytest.mark.parametrize("quant", CODES)
def test_the_bound_is_nearly_reached(threads, quant):
    """So it is not merely generous: among many numbers some are off by more than nine tenths of it."""
    x = np.random.default_rng(1).uniform(-1, 1, (50, 1280)).astype(np.float32)
    [(codes, scales, _)] = threads.run(codes_of, 1, quant, x)
    error = np.abs(dequantised(codes, scales).astype(np.float64) - x)
    assert 0.9 < (error / bound_of_error(x, quant)).max() <= 1


def reuse(comm, shape, batches):
    """A routing used again, buffers of either kind, and a result combined twice."""
    mine = batches[comm.rank]
    with open_ep(comm, shape) as ep:
        x, scales, y, routing = one_round(ep, mine, shape)
        buffer = ep.input_buffer(len(mine.x))
        buffer[:] = mine.x
        for given in (mine.x, buffer):
            again = one_round(ep, replace(mine, x=given), shape, routing)
            for found, expected in zip(again, (x, scales, y), strict=False):
                same_bits(found, expected, "again")
        same_bits(np.array(buffer), mine.x, "the input buffer is as it was")
        d = ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights)
        out = d.output_buffer()
        rows = numbers(d, shape)
        for i, expert in enumerate(ep.local_experts):
            out[d.rows_of(i)] = scale(expert, rows[d.rows_of(i)])
        kept = np.array(out)
        for _ in range(3):
            same_bits(np.array(ep.combine(out, d)), y, "from the output buffer")
            same_bits(np.array(out), kept, "the output buffer is as it was")
        held, held_scales = d.x, d.scales
        d.release()
        same_bits(np.array(held), x, "codes held after release")
        same_bits(np.array(held_scales), scales, "scales held after release")
        return x, scales, y


@pytest.mark.parametrize("layout", ["expert", "token"])
@pytest.mark.parametrize("quant", CODES)
def test_routing_buffers_and_results_are_used_again(ranks, quant, layout):
    shape = replace(SHAPE, layout=layout, dispatch_quant=quant, combine_quant=quant)
    batches = random_batches(5, shape, 3)
    compare(ranks.run(reuse, 3, shape, batches), shape, batches)


def many_rounds(comm, shape, all_batches):
    with open_ep(comm, shape) as ep:
        return [one_round(ep, batches[comm.rank], shape)[:3] for batches in all_batches]


def test_many_rounds_in_a_row(ranks):
    shape = replace(SHAPE, hidden=130, dispatch_quant="fp8_e4m3", combine_quant="int8")
    all_batches = [random_batches(seed, shape, 2) for seed in range(40)]
    found = ranks.run(many_rounds, 2, shape, all_batches)
    for number, batches in enumerate(all_batches):
        compare([one[number] for one in found], shape, batches)


def past_the_caches(comm, shape):
    """So many rows that they are written past the caches, whatever the caches."""
    rng = np.random.default_rng(comm.rank)
    x = ordinary_values(rng, (shape.max_tokens, shape.hidden), shape.dtype)
    with open_ep(comm, shape) as ep:
        d = ep.dispatch(x, np.full((len(x), 1), 1 - comm.rank), np.ones((len(x), 1), np.float32))
        other = ordinary_values(np.random.default_rng(1 - comm.rank), x.shape, shape.dtype)
        codes, scales = quantised(other, shape.dispatch_quant)
        same_bits(np.array(d.x), codes, "codes")
        same_bits(in_blocks(d.scales, shape.dispatch_quant), scales, "scales")
        y = ep.combine(other, d)
        same_bits(np.array(y), rounded(dequantised(*quantised(x, shape.combine_quant)), shape.dtype), "sums")


def test_rows_that_go_past_the_caches(either_provider):
    hidden = 1001  # rows that end anywhere in a line
    tokens = (48 << 20) // hidden
    either_provider.run(
        past_the_caches, 2, Shape(2, hidden, tokens, 1, dispatch_quant="int8", combine_quant="int8")
    )


def misuse(comm):
    told = {}
    for quant in ("int4", "fp8", 8, True, "INT8"):
        for name in ("dispatch_quant", "combine_quant"):
            told[f"{name}={quant!r}"] = error_of(xccl.ExpertParallel, comm, 4, 8, 4, 2, **{name: quant})
    with xccl.ExpertParallel(comm, 4, 8, 4, 2, "float32", dispatch_quant="int8") as ep:
        d = ep.dispatch(np.ones((4, 8), np.float32), np.zeros((4, 2), np.int64), np.ones((4, 2), np.float32))
        told["rows has dtype int8"] = error_of(ep.combine, d.x, d)
        told["x has dtype int8"] = error_of(
            ep.dispatch, np.ones((4, 8), np.int8), np.zeros((4, 2), np.int64), d.weights
        )
        ep.combine(d.output_buffer(), d)
        d.release()
        told["released"] = error_of(lambda: d.scales)
    return told


def test_what_is_wrong_is_refused_by_name(either_provider):
    for told in either_provider.run(misuse, 2):
        for text, error in told.items():
            assert type(error) is xccl.InvalidArgument
            assert text in str(error)


def disagree(comm, name):
    quants = [None, "int8"] if comm.rank else ["int8", "fp8_e4m3"]
    return [error_of(xccl.ExpertParallel, comm, 4, 8, 4, 2, **{name: quant}) for quant in quants]


@pytest.mark.parametrize("name", ["dispatch_quant", "combine_quant"])
def test_ranks_that_disagree_are_told(either_provider, name):
    for rank, errors in enumerate(either_provider.run(disagree, 2, name)):
        for error, pair in zip(errors, [("int8", "None"), ("fp8_e4m3", "int8")], strict=True):
            assert type(error) is xccl.Mismatch
            mine, theirs = pair[::-1] if rank else pair
            assert f"rank {rank} has {name}={mine}, rank {1 - rank} has {theirs}" in str(error)
