"""Dispatch and combine against the slow truth of truth.py, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from truth import (
    DTYPES,
    Batch,
    Shape,
    any_bits,
    combined,
    dispatched,
    experts_of,
    ordinary_values,
    random_batch,
    same_bits,
    scale,
)

import xccl


def dispatch_and_combine(comm, shape, batches):
    """One round on one rank. Returns everything that it got."""
    mine = batches[comm.rank]
    with xccl.ExpertParallel(comm, *shape_arguments(shape), layout=shape.layout) as ep:
        d = ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights)
        results = np.empty((d.num_rows, shape.hidden), d.x.dtype)
        for i, expert in enumerate(ep.local_experts):
            results[d.rows_of(i)] = scale(expert, d.expert(i))
        y = ep.combine(results, d)
        return {
            "experts": ep.local_experts,
            "x": np.array(d.x),
            "index": np.array(d.index),
            "counts": d.counts,
            "num_rows": d.num_rows,
            "src_rank": d.src_rank,
            "src_token": d.src_token,
            "weights": d.weights,
            "y": np.array(y),
        }


def shape_arguments(shape):
    return shape.num_experts, shape.hidden, shape.max_tokens, shape.topk, shape.dtype


def check(ranks, shape, batches):
    """Runs a round and compares what every rank got with the truth."""
    found = ranks.run(dispatch_and_combine, len(batches), shape, batches)
    for rank, got in enumerate(found):
        expected = dispatched(rank, batches, shape)
        assert got["experts"] == experts_of(rank, len(batches), shape.num_experts)
        assert got["num_rows"] == len(expected.src_rank)
        np.testing.assert_array_equal(got["index"], expected.index, strict=True)
        np.testing.assert_array_equal(got["counts"], expected.counts, strict=True)
        np.testing.assert_array_equal(got["src_rank"], expected.src_rank, strict=True)
        np.testing.assert_array_equal(got["src_token"], expected.src_token, strict=True)
        same_bits(got["weights"], expected.weights, f"weights on rank {rank}")
        same_bits(got["x"], expected.x, f"rows on rank {rank}")
        same_bits(got["y"], combined(batches[rank], shape, scale), f"sums on rank {rank}")


@st.composite
def rounds(draw):
    """A shape and one batch per rank: everything that the documentation calls normal."""
    shape = Shape(
        num_experts=draw(st.integers(1, 11), "num_experts"),
        hidden=draw(st.integers(1, 20) | st.sampled_from([255, 256, 257, 600]), "hidden"),
        max_tokens=draw(st.integers(1, 9), "max_tokens"),
        topk=draw(st.integers(1, 5), "topk"),
        dtype=draw(st.sampled_from(list(DTYPES)), "dtype"),
        layout=draw(st.sampled_from(["expert", "token"]), "layout"),
    )
    values = draw(st.sampled_from([ordinary_values, any_bits]), "values")
    index_dtype = draw(st.sampled_from([np.int32, np.int64]), "index dtype")
    batches = []
    for _ in range(draw(st.sampled_from([1, 2, 3, 5]), "ranks")):
        tokens = draw(st.integers(0, shape.max_tokens))
        # Often the same expert for most slots: hypothesis fills what it does not draw with one value.
        experts = hnp.arrays(
            index_dtype, (tokens, shape.topk), elements=st.integers(-1, shape.num_experts - 1)
        )
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        batches.append(
            Batch(
                x=values(rng, (tokens, shape.hidden), shape.dtype),
                topk_idx=draw(experts),
                topk_weights=values(rng, (tokens, shape.topk), "float32"),
            )
        )
    return shape, batches


@hypothesis.given(rounds())
@hypothesis.settings(max_examples=40)
def test_any_round_gives_the_rows_and_sums_of_the_truth(ranks, job):
    check(ranks, *job)


SMALL = Shape(num_experts=5, hidden=33, max_tokens=6, topk=3)


def batches_of(shape, tokens, choose, seed=1):
    """One batch per entry of `tokens`; `choose(rng, shape of topk_idx)` says which experts."""
    rng = np.random.default_rng(seed)
    return [
        replace(random_batch(rng, shape, count), topk_idx=choose(rng, (count, shape.topk)))
        for count in tokens
    ]


def anything(rng, size):
    return rng.integers(-1, SMALL.num_experts, size)


NORMAL = {
    "every rank has as many tokens as it may": ([6, 6, 6], anything),
    "ranks without tokens": ([0, 4, 0], anything),
    "no rank has a token": ([0, 0, 0], anything),
    "tokens without any expert": ([3, 5, 2], lambda rng, size: np.full(size, -1)),
    "one expert gets everything": ([6, 6, 6], lambda rng, size: np.full(size, 4)),
    "a token names the same expert twice": ([2, 3, 4], lambda rng, size: rng.integers(0, 2, size)),
    "some slots are empty": (
        [4, 4, 4],
        lambda rng, size: np.where(rng.integers(0, 2, size), -1, anything(rng, size)),
    ),
    "a single rank": ([5], anything),
    "more ranks than experts": ([1, 0, 2, 3, 1, 2, 0], anything),
    "all tokens stay at home": ([4], lambda rng, size: np.zeros(size, np.int64)),
}


@pytest.mark.parametrize("layout", ["expert", "token"])
@pytest.mark.parametrize("case", NORMAL)
def test_this_is_normal(ranks, case, layout):
    tokens, choose = NORMAL[case]
    check(ranks, replace(SMALL, layout=layout), batches_of(SMALL, tokens, choose))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 7, 256, 1001])
def test_rows_of_any_length_in_every_dtype(ranks, dtype, hidden):
    shape = replace(SMALL, dtype=dtype, hidden=hidden)
    check(ranks, shape, batches_of(shape, [3, 6], anything))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_arrive_untouched_and_are_summed_by_the_contract(ranks, dtype):
    shape = Shape(num_experts=4, hidden=500, max_tokens=8, topk=4, dtype=dtype)
    rng = np.random.default_rng(7)
    batches = [
        Batch(
            x=any_bits(rng, (8, shape.hidden), dtype),
            topk_idx=rng.integers(-1, shape.num_experts, (8, shape.topk)),
            topk_weights=any_bits(rng, (8, shape.topk), "float32"),
        )
        for _ in range(2)
    ]
    check(ranks, shape, batches)


def one_row_sum(comm, dtype, value, weights):
    """Combines one row with itself, once per weight."""
    topk = len(weights)
    with xccl.ExpertParallel(comm, num_experts=1, hidden=1, max_tokens=1, topk=topk, dtype=dtype) as ep:
        x = np.array([[value]], DTYPES[dtype])
        d = ep.dispatch(x, np.zeros((1, topk), np.int64), np.array([weights], np.float32))
        return np.array(ep.combine(d.x, d))


# The contract by examples that can be checked by hand. 2**-24 is half a unit in the last place of 1.0 in float32.
CONTRACT = {
    "products are rounded before they are added": ("float32", 1 + 2**-12, [-1.0, 1 + 2**-12], 2**-12),
    "sums are made in the order of top-k": ("float32", 1.0, [1.0, 2**-24, 2**-24], 1.0),
    "and in another order they differ": ("float32", 1.0, [2**-24, 2**-24, 1.0], 1 + 2**-23),
    "the first product is not added to zero": ("float32", -0.0, [1.0], -0.0),
    "float16 is rounded once, to even": ("float16", 1.0, [1 + 2**-11], 1.0),
    "float16 rounds what lies above the middle up": ("float16", 1.0, [1 + 2**-11, 2**-20], 1 + 2**-10),
    "bfloat16 is rounded once, to even": ("bfloat16", 1.0, [1 + 2**-8], 1.0),
    "bfloat16 rounds odd neighbours up": ("bfloat16", 1.0, [1 + 3 * 2**-8], 1 + 2**-6),
    "denormals of float32 are kept": ("float32", 2.0**-140, [0.5], 2.0**-141),
    "denormals of float16 are kept": ("float16", 2.0**-24, [3.0], 3 * 2.0**-24),
    "float16 overflows to infinity": ("float16", 60000.0, [1.0, 1.0], np.inf),
    "what is too large for float16 may be summed on the way": ("float16", 60000.0, [1.0, 1.0, -1.0], 60000.0),
    "infinity minus infinity is the canonical NaN": ("bfloat16", np.inf, [1.0, -1.0], np.nan),
}


@pytest.mark.parametrize("case", CONTRACT)
def test_arithmetic_contract(threads, case):
    dtype, value, weights, expected = CONTRACT[case]
    [y] = threads.run(one_row_sum, 1, dtype, value, weights)
    same_bits(y, np.array([[expected]], DTYPES[dtype]))


def usable_kernels():
    """The names that XCCL_KERNELS takes on this processor."""
    usable = []
    for name in ("generic", "avx2", "avx512"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XCCL_KERNELS", name)
            try:
                usable.append(xccl._core.kernels())
            except xccl.InvalidArgument:
                continue
    return usable


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", usable_kernels())
def test_every_instruction_set_gives_the_same_bits(threads, name, dtype):
    rng = np.random.default_rng(3)
    shape = Shape(num_experts=4, hidden=3 * 256 + 5, max_tokens=16, topk=4, dtype=dtype)
    batches = [
        Batch(
            x=any_bits(rng, (16, shape.hidden), dtype),
            topk_idx=rng.integers(-1, 4, (16, 4)),
            topk_weights=any_bits(rng, (16, 4), "float32"),
        )
        for _ in range(2)
    ]
    check(threads.variables(XCCL_KERNELS=name), shape, batches)


def test_the_generic_kernels_are_always_there():
    assert "generic" in usable_kernels()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_ranks_does_not_change_a_bit(ranks, dtype):
    everything = random_batch(np.random.default_rng(5), Shape(7, 40, 30, 3, dtype), tokens=30)
    sums = {}
    for size in (1, 2, 3, 5):
        # Uneven parts: the first rank has most tokens, the last may have none.
        cuts = [0, *sorted({30 - 30 // (k + 1) for k in range(1, size)}), 30]
        cuts += [30] * (size + 1 - len(cuts))
        parts = [
            Batch(everything.x[a:b], everything.topk_idx[a:b], everything.topk_weights[a:b])
            for a, b in itertools.pairwise(cuts)
        ]
        found = ranks.run(dispatch_and_combine, size, Shape(7, 40, 30, 3, dtype), parts)
        sums[size] = np.concatenate([got["y"] for got in found])
    for size in (2, 3, 5):
        same_bits(sums[size], sums[1], f"{size} ranks")


def repeat_rounds(comm, shape, rounds):
    """Rounds with other tokens, and another number of them, each time; returns the sums."""
    sums = []
    with xccl.ExpertParallel(comm, *shape_arguments(shape)) as ep:
        for batches in rounds:
            mine = batches[comm.rank]
            with ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights) as d:
                for i, expert in enumerate(ep.local_experts):
                    d.expert(i)[:] = scale(expert, d.expert(i))
                sums.append(np.array(ep.combine(d.x, d)))
    return sums


def test_many_rounds_in_a_row_with_changing_numbers_of_tokens(ranks):
    shape = Shape(num_experts=6, hidden=12, max_tokens=7, topk=2)
    rng = np.random.default_rng(11)
    rounds = [[random_batch(rng, shape) for _ in range(3)] for _ in range(80)]
    found = ranks.run(repeat_rounds, 3, shape, rounds)
    for number, batches in enumerate(rounds):
        for rank, batch in enumerate(batches):
            same_bits(found[rank][number], combined(batch, shape, scale), f"round {number} on rank {rank}")
