"""all_reduce and reduce_scatter against slow sums in numpy, bit for bit, on one to nine ranks."""

from __future__ import annotations

import hashlib

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from ranks import error_of

import xccl

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
}
NAN = {"float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0}


def values(count, dtype, *key, special=True):
    """Numbers whose sum depends on the order; now and then infinities, NaN of any kind, zeros and denormals."""
    rng = np.random.default_rng([3, *key])
    if dtype == "int64":
        return rng.integers(-(2**63), 2**63, count, np.int64)
    found = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)).astype(DTYPES[dtype])
    if special:
        bits = found.view(np.uint32 if dtype == "float32" else np.uint16)
        odd = rng.random(count) < 0.2
        bits[odd] = rng.integers(0, 2 ** (8 * bits.itemsize), int(odd.sum()), bits.dtype)
        found[rng.random(count) < 0.1] = -0.0
    return found


def reduced(arrays, op):
    """In the order given: each step in float32, rounded once; int64 wraps; max as the docstring says."""
    name = arrays[0].dtype.name
    with np.errstate(all="ignore"):
        if name == "int64":
            return np.add.reduce(arrays) if op == "sum" else np.maximum.reduce(arrays)
        total = arrays[0].astype(np.float32)
        for one in arrays[1:]:
            wide = one.astype(np.float32)
            if op == "sum":
                total = total + wide
            else:
                both_zero = (total == 0) & (wide == 0)
                total = np.where(both_zero, total + wide, np.maximum(total, wide))
        total = np.where(np.isnan(total), np.float32(np.nan), total)
        result = total.astype(arrays[0].dtype)
    bits = result.view(np.uint32 if name == "float32" else np.uint16)
    bits[np.isnan(total)] = NAN[name]
    return result


def around_the_switch(size, itemsize):
    """Numbers of elements on both sides of every change of path ."""
    counts = [0, 1, 24 // itemsize, 24 // itemsize + 1, 255, 257, 1001]
    most = 8 * 1024 // itemsize
    return [*counts, most, most + 1, most + size * 16 + 3]


def reduce_all(comm, dtype, op):
    for count in around_the_switch(comm.size, DTYPES[dtype].itemsize):
        given = [values(count, dtype, rank, count) for rank in range(comm.size)]
        expected = reduced(given, op)
        got = comm.all_reduce(given[comm.rank], op)
        assert type(got) is xccl.Array
        assert got.dtype == DTYPES[dtype]
        assert got.tobytes() == expected.tobytes(), count
        out = given[comm.rank]
        assert comm.all_reduce(out, op=op, out=out) is out
        assert out.tobytes() == expected.tobytes(), count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sum", "max"])
@pytest.mark.parametrize("size", range(1, 10))
def test_all_reduce_has_the_bits_of_a_slow_sum_in_rank_order(threads, size, op, dtype):
    threads.run(reduce_all, size, dtype, op)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce_has_these_bits_however_data_is_moved(ranks, dtype):
    for size in (2, 5):
        ranks.run(reduce_all, size, dtype, "sum")


def reduce_much(comm, count):
    given = [values(count, "float32", rank, special=False) for rank in range(comm.size)]
    got = comm.all_reduce(given[comm.rank])
    assert got.tobytes() == reduced(given, "sum").tobytes()


def test_all_reduce_of_more_than_a_round(ranks):
    for size in (2, 3):
        ranks.run(reduce_much, size, 2_000_003)


def scatter(comm, dtype, op):
    for count in (0, 1, 5, 6, 7, 500):
        given = [values(comm.size * count, dtype, rank, count) for rank in range(comm.size)]
        expected = reduced(given, op).reshape(comm.size, count)[comm.rank]
        mine = given[comm.rank].reshape(comm.size, count)
        got = comm.reduce_scatter(mine, op)
        assert got.shape == (count,)
        assert got.tobytes() == expected.tobytes()
        assert comm.reduce_scatter(mine, op=op, out=mine[comm.rank]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sum", "max"])
def test_reduce_scatter_gives_every_rank_its_part(ranks, op, dtype):
    for size in (1, 2, 5):
        ranks.run(scatter, size, dtype, op)


def scatter_rows(comm, counts, shape, dtype):
    rows = int(sum(counts))
    width = int(np.prod(shape, dtype=np.int64))
    given = [values(rows * width, dtype, rank, 5).reshape(rows, *shape) for rank in range(comm.size)]
    expected = np.split(reduced(given, "sum"), np.cumsum(counts)[:-1])[comm.rank]
    got = comm.reduce_scatter_v(given[comm.rank], counts)
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()
    out = np.empty_like(expected)
    assert comm.reduce_scatter_v(given[comm.rank], np.array(counts), out=out) is out
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "counts", [[4], [3, 1], [0, 0, 7], [0, 0, 0], [1, 0, 5, 2, 30], [40, 0, 1, 0, 1, 9, 9, 2, 3]]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reduce_scatter_v_gives_unequal_parts(ranks, counts, dtype):
    ranks.run(scatter_rows, len(counts), counts, (3, 5), dtype)


def test_reduce_scatter_v_of_more_than_a_round(ranks):
    ranks.run(scatter_rows, 3, [1500, 7, 1], (1000,), "float32")


@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.data())
def test_reductions_of_any_shape(threads, data):
    size = data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=2)))
    threads.run(scatter_rows, size, counts, shape, data.draw(st.sampled_from(list(DTYPES))))


def hashes(comm, rounds):
    """The same data in every run, whatever the number of ranks; three sizes, so both algorithms."""
    found = []
    for count in (3, 2000, 60_000):
        for _ in range(rounds):
            got = comm.all_reduce(values(count, "float32", comm.rank, special=False))
            found.append(hashlib.sha256(got.tobytes()).hexdigest())
    assert len(set(found)) == 3
    return found


@pytest.mark.parametrize("size", range(2, 10))
def test_all_reduce_gives_identical_bits_on_all_ranks_and_in_every_run(processes, threads, size):
    runs = [processes.run(hashes, size, 3), processes.run(hashes, size, 3), threads.run(hashes, size, 3)]
    assert len({tuple(found) for run in runs for found in run}) == 1


def special_cases(comm):
    zero = np.array([-0.0 if comm.rank else 0.0, -0.0], np.float32)
    assert np.signbit(comm.all_reduce(zero, "max")).tolist() == [False, True]
    last = np.int64(2**63 - 1)
    assert comm.all_reduce(np.array([last, comm.rank])).tolist() == [
        (3 * int(last) + 2**63) % 2**64 - 2**63,
        3,
    ]
    tiny = np.array([1e-45, 1e-40], np.float32)
    assert comm.all_reduce(tiny).tobytes() == reduced([tiny] * 3, "sum").tobytes()
    assert comm.all_reduce(np.array(comm.rank, np.int64)).shape == ()


def test_zeros_wraps_denormals_and_scalars(ranks):
    ranks.run(special_cases, 3)


def refuse(comm):
    wrong = {
        "op='min': expected": [lambda: comm.all_reduce(np.zeros(3, "f4"), "min")],
        "op=None": [lambda: comm.reduce_scatter(np.zeros((2, 3), "f4"), None)],
        "a has dtype float64: expected float32": [lambda: comm.all_reduce(np.zeros(3))],
        "a has dtype int32": [lambda: comm.reduce_scatter(np.zeros((2, 1), "i4"))],
        "a has dtype >f4": [lambda: comm.all_reduce(np.zeros(3, ">f4"))],
        "expected (2, ...)": [lambda: comm.reduce_scatter(np.zeros(3, "f4"))],
        "counts add up to 5: expected 4": [lambda: comm.reduce_scatter_v(np.zeros((4, 2), "f4"), [2, 3])],
        "expected (2,) whole numbers": [lambda: comm.reduce_scatter_v(np.zeros(3, "f4"), [3])],
        "out has shape (4,) and dtype float32": [
            lambda: comm.all_reduce(np.zeros(3, "f4"), out=np.zeros(4, "f4"))
        ],
        "the output overlaps the input": [lambda: overlapping(comm)],
    }
    for text, calls in wrong.items():
        for call in calls:
            error = error_of(call)
            assert type(error) is xccl.InvalidArgument, text
            assert text in str(error)
    assert comm.all_reduce(np.array([1])).tolist() == [2]


def overlapping(comm):
    memory = np.zeros(5, np.float32)
    comm.all_reduce(memory[:4], out=memory[1:])


def test_wrong_arguments_are_named_before_anything_is_sent(ranks):
    ranks.run(refuse, 2)
