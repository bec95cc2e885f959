"""The collectives that move arrays without changing them: what they promise, on any number of ranks.

Compared with numpy: every rank can make what every other rank gives. Reductions: test_reductions.py.
"""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from ranks import error_of, mark, marked, wait_until

import xccl


def meet_again_and_again(comm, counters):
    """Nobody leaves barrier n before everybody has come to it."""
    for number in range(200):
        counters[comm.rank] = number
        comm.barrier()
        assert min(counters) >= number
        comm.barrier()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_nobody_leaves_a_barrier_before_all_have_come(threads, size):
    threads.run(meet_again_and_again, size, [-1] * size)


def wait_for_the_last(comm, folder):
    if comm.rank == comm.size - 1:
        assert not any(marked(folder, f"through-{rank}") for rank in range(comm.size))
        mark(folder, "coming")
    comm.barrier()
    assert marked(folder, "coming")
    mark(folder, f"through-{comm.rank}")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_barrier_waits_for_the_last_rank(ranks, tmp_path, size):
    ranks.run(wait_for_the_last, size, tmp_path)


def gather(comm, make, rounds):
    for number in range(rounds):
        expected = np.stack([make(rank, number) for rank in range(comm.size)])
        got = comm.all_gather(make(comm.rank, number))
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def small(rank, number):
    return np.array([rank, number, rank * number], np.int64)


def scalar(rank, number):
    return np.array(rank + number * 0.5)


def empty(rank, number):
    return np.empty((0, 3), np.float32)


def rows_of_bfloat16(rank, number):
    return np.full((3, 5), rank + number, ml_dtypes.bfloat16)


def several_rounds(rank, number):
    """More than goes in one round, and not a multiple."""
    return np.arange(1_100_001, dtype=np.int32) * (rank + 1) + number


def every_other_column(rank, number):
    return (np.arange(20).reshape(4, 5) + rank + number)[:, ::2]


@pytest.mark.parametrize("make", [small, scalar, empty, rows_of_bfloat16, every_other_column])
def test_all_gather_stacks_what_the_ranks_give(ranks, make):
    for size in (1, 2, 5):
        ranks.run(gather, size, make, 10)


def test_all_gather_of_more_than_a_round(ranks):
    ranks.run(gather, 3, several_rounds, 2)


def gather_into(comm):
    out = comm.empty((comm.size, 4), "int64")
    mine = comm.empty(4, "int64")
    mine[:] = comm.rank
    assert comm.all_gather(mine, out=out) is out
    np.testing.assert_array_equal(out, np.repeat(np.arange(comm.size), 4).reshape(-1, 4))
    assert type(comm.all_gather(mine)) is xccl.Array


def test_all_gather_fills_the_array_that_is_given(ranks):
    ranks.run(gather_into, 3)


def describe(comm, provider):
    assert comm.provider == provider
    assert comm.timeout == 30.0
    assert not comm.closed
    assert comm.job.startswith("test-")
    assert repr(comm) == f"<xccl.Communicator rank {comm.rank} of {comm.size}, {provider}, job {comm.job!r}>"
    return comm.rank, comm.size


def test_a_communicator_describes_itself(either_provider):
    assert either_provider.run(describe, 3, either_provider.provider) == [(0, 3), (1, 3), (2, 3)]


def run_ahead(comm, folder):
    """Rank 0 is in the second collective while rank 1 has not left the first, and so on."""
    for number in range(100):
        got = comm.all_gather(np.array([number, comm.rank]))
        np.testing.assert_array_equal(got, [[number, rank] for rank in range(comm.size)])
        if number % 10 == 0:
            comm.barrier()
    if comm.rank == 0:
        mark(folder, "done")
        return  # closes while others may still be reading
    wait_until(lambda: marked(folder, "done"), "rank 0 is through")


def test_fast_ranks_may_run_ahead_and_close(ranks, tmp_path):
    ranks.run(run_ahead, 4, tmp_path)


# Around what rides in a record (24 bytes), around cache lines and pages.
LENGTHS = [0, 1, 3, 23, 24, 25, 63, 64, 65, 1001, 4096, 70_001]
DTYPES = ["uint8", "float32", "float16", "bfloat16", "int64", "complex128", "bool"]


def content(shape, *key, dtype="uint8"):
    """Bits that differ for every key; all of them are possible."""
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    count = int(np.prod(shape, dtype=np.int64))
    found = np.random.default_rng([7, *key]).integers(0, 256, count * dtype.itemsize, np.uint8)
    return (found & 1 if dtype.kind == "b" else found).view(dtype).reshape(shape)


def same(a, b):
    """The same shape, dtype and bits."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def exchange_all(comm, lengths, dtype):
    for number, length in enumerate(lengths):
        given = [content((comm.size, length), source, number, dtype=dtype) for source in range(comm.size)]
        expected = np.stack([part[comm.rank] for part in given])
        got = comm.all_to_all(given[comm.rank])
        assert type(got) is xccl.Array
        assert same(got, expected)
        out = np.empty_like(expected)
        assert comm.all_to_all(given[comm.rank], out=out) is out
        assert same(out, expected)


@pytest.mark.parametrize("size", range(1, 10))
def test_all_to_all_gives_part_r_to_rank_r(ranks, size):
    ranks.run(exchange_all, size, LENGTHS, "uint8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_to_all_takes_any_dtype(threads, dtype):
    threads.run(exchange_all, 3, [5, 100], dtype)


def test_all_to_all_of_more_than_a_round(ranks):
    ranks.run(exchange_all, 3, [2**21 - 1, 2**21 + 1, 3_000_001], "uint8")


def exchange_rows(comm, table, shape, dtype):
    """table[s][d]: rows from s to d."""
    given = [content((sum(row), *shape), source, 1, dtype=dtype) for source, row in enumerate(table)]
    parts = [np.split(rows, np.cumsum(row)[:-1]) for rows, row in zip(given, table, strict=True)]
    expected = np.concatenate([part[comm.rank] for part in parts])
    counts = [row[comm.rank] for row in table]
    for out in (None, np.empty((len(expected) + 3, *shape), expected.dtype), np.empty_like(expected)):
        rows, received = comm.all_to_all_v(given[comm.rank], table[comm.rank], out=out)
        assert same(rows, expected)
        assert received.dtype == np.int64
        assert received.tolist() == counts
        assert type(rows) is xccl.Array
        assert out is None or rows.size == 0 or np.shares_memory(rows, out)


def gather_rows(comm, counts, shape, dtype):
    given = [content((count, *shape), source, 2, dtype=dtype) for source, count in enumerate(counts)]
    expected = np.concatenate(given)
    for out in (None, np.empty((len(expected) + 1, *shape), expected.dtype)):
        rows, received = comm.all_gather_v(given[comm.rank], out=out)
        assert same(rows, expected)
        assert received.tolist() == counts


def table_of(size, *key):
    rng = np.random.default_rng([size, *key])
    return (rng.integers(0, 50, (size, size)) * rng.integers(0, 2, (size, size))).tolist()


@pytest.mark.parametrize("size", range(1, 10))
def test_all_to_all_v_gives_unequal_numbers_of_rows(ranks, size):
    ranks.run(exchange_rows, size, table_of(size, 1), (7,), "float32")


@pytest.mark.parametrize("shape", [(), (3, 5), (0,), (2, 0, 3)])
def test_rows_may_have_any_shape(ranks, shape):
    ranks.run(exchange_rows, 3, table_of(3, 2), shape, "int64")
    ranks.run(gather_rows, 3, [5, 0, 9], shape, "bfloat16")


@pytest.mark.parametrize(
    "table",
    [
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 5000, 0], [0, 0, 0], [3, 0, 0]],
        [[1, 12_000, 7], [0, 0, 0], [4000, 0, 200]],
    ],
    ids=["nothing", "one row", "one way", "more than a round for one only"],
)
def test_all_to_all_v_where_most_have_nothing(ranks, table):
    ranks.run(exchange_rows, 3, table, (1000,), "uint8")


@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 0, 4], [6000, 1, 0]])
def test_all_gather_v_stacks_unequal_numbers_of_rows(ranks, counts):
    ranks.run(gather_rows, 3, counts, (1000,), "uint8")


def without_room(comm, small):
    """One rank has no room for what comes. Gives its error."""
    rows = np.full((6, 2), comm.rank)
    out = np.full((5 if comm.rank == small else 6, 2), -1)
    if comm.rank == small:
        error = error_of(comm.all_to_all_v, rows, [2, 2, 2], out=out)
        assert (out == -1).all()
    else:
        error = comm.all_to_all_v(rows, [2, 2, 2], out=out)[0].tolist()
    gathered = error_of(comm.all_gather_v, rows, out=np.empty((17, 2), np.int64))
    assert type(gathered) is xccl.Truncated
    comm.barrier()
    np.testing.assert_array_equal(comm.all_gather(np.array([comm.rank])), [[0], [1], [2]])
    return error


def test_too_little_room_is_an_error_of_that_rank_only_and_names_both_sizes(ranks):
    answers = ranks.run(without_room, 3, 1)
    assert answers[0] == answers[2] == [[source] * 2 for source in (0, 0, 1, 1, 2, 2)]
    assert type(answers[1]) is xccl.Truncated
    assert "room for 5 rows, but 6 have come" in str(answers[1])
    assert answers[1].op == "all_to_all_v"


@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.data())
def test_rows_of_any_shape_and_number(threads, data):
    size = data.draw(st.integers(1, 4))
    count = st.integers(0, 6) | st.integers(0, 400)
    table = data.draw(st.lists(st.lists(count, min_size=size, max_size=size), min_size=size, max_size=size))
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=2)))
    dtype = data.draw(st.sampled_from(DTYPES))
    threads.run(exchange_rows, size, table, shape, dtype)
    threads.run(gather_rows, size, table[0], shape, dtype)
    threads.run(exchange_all, size, table[0], dtype)


def cast(comm, lengths):
    for number, length in enumerate(lengths):
        for root in range(comm.size):
            expected = content((length,), root, number)
            mine = expected.copy() if comm.rank == root else np.full_like(expected, 77)
            assert comm.broadcast(mine, root) is mine
            assert same(mine, expected)
            given = content((length,), comm.rank, number)
            given.flags.writeable = False
            out = np.empty_like(expected)
            assert comm.broadcast(given, root=root, out=out) is out
            assert same(out, expected)
            assert same(given, content((length,), comm.rank, number))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_broadcast_gives_everybody_the_roots_array(ranks, size):
    ranks.run(cast, size, LENGTHS if size < 9 else [0, 25, 5000])


def test_broadcast_of_more_than_a_round(ranks):
    ranks.run(cast, 2, [2**22 - 1, 2**22 + 1])


def mix(comm, seed):
    """Calls of all kinds, one after the other without a barrier; rank 0 is through first and closes."""
    rng = np.random.default_rng(seed)
    for number in range(60):
        length = int(rng.integers(0, 30) if number % 2 else rng.integers(0, 20_000))
        kind, root = int(rng.integers(4)), int(rng.integers(comm.size))
        if kind == 0:
            exchange_all(comm, [length], "uint8")
        elif kind == 1:
            gather_rows(comm, [(length * rank) % 50 for rank in range(comm.size)], (9,), "float32")
        elif kind == 2:
            got = comm.broadcast(content((length,), comm.rank, number), root)
            assert same(got, content((length,), root, number))
        else:
            got = comm.all_reduce(np.full(length, comm.rank + number))
            assert (got == comm.size * number + sum(range(comm.size))).all()


@pytest.mark.parametrize("size", [2, 5])
def test_calls_of_all_kinds_follow_each_other(ranks, size):
    ranks.run(mix, size, size)


DISAGREEMENTS = {
    "bytes": ("8 bytes", "16 bytes", lambda c, o: c.all_gather(np.zeros(2 if o else 1))),
    "parts": (
        "8 bytes for each",
        "16 bytes for each",
        lambda c, o: c.all_to_all(np.zeros((3, 2 if o else 1))),
    ),
    "rows": (
        "8 bytes per row",
        "4 bytes per row",
        lambda c, o: c.all_gather_v(np.zeros(3, "f4" if o else "f8")),
    ),
    "rows to each": (
        "8 bytes per row",
        "24 bytes per row",
        lambda c, o: c.all_to_all_v(np.zeros((6, 3 if o else 1)), [1, 2, 3]),
    ),
    "root": ("root: ", "has 2", lambda c, o: c.broadcast(np.zeros(1), 2 if o else 1)),
    "broadcast": ("8 bytes", "40 bytes", lambda c, o: c.broadcast(np.zeros(5 if o else 1))),
    "calls": (
        "calls broadcast",
        "calls all_gather",
        lambda c, o: c.all_gather(np.zeros(1)) if o else c.broadcast(np.zeros(1)),
    ),
    "dtype": (
        "has float32",
        "has bfloat16",
        lambda c, o: c.all_reduce(np.zeros(4, ml_dtypes.bfloat16 if o else "f4")),
    ),
    "op": ("has sum", "has max", lambda c, o: c.all_reduce(np.zeros(4, "f4"), "max" if o else "sum")),
    "elements": ("4 elements", "5 elements", lambda c, o: c.all_reduce(np.zeros(5 if o else 4, "f4"))),
    "shares": ("2 elements", "7 elements", lambda c, o: c.reduce_scatter(np.zeros((3, 7 if o else 2), "f4"))),
    "counts": (
        "counts[1]: ",
        "has 1",
        lambda c, o: c.reduce_scatter_v(np.zeros(6, "f4"), [2, 1, 3] if o else [2, 3, 1]),
    ),
    "counts of rows": (
        "counts[1]: ",
        "has 1",
        lambda c, o: c.reduce_scatter_v(np.zeros((6, 100), "f4"), [2, 1, 3] if o else [2, 3, 1]),
    ),
    "counts of empty rows": (
        "counts[1]: ",
        "has 1",
        lambda c, o: c.reduce_scatter_v(np.zeros((6, 0), "f4"), [2, 1, 3] if o else [2, 3, 1]),
    ),
    "elements of rows": (
        "elements of a row: ",
        "has 4",
        lambda c, o: c.reduce_scatter_v(np.zeros((3, 4) if o else (6, 1, 2), "f4"), [1 if o else 2] * 3),
    ),
}


def disagree(comm, what, odd):
    call = DISAGREEMENTS[what][2]
    error = error_of(call, comm, comm.rank == odd)
    assert "failed before" in str(error_of(comm.barrier))
    return error


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_are_told_on_every_side_what_about_and_with_whom(ranks, what):
    first, second, _ = DISAGREEMENTS[what]
    for odd in (0, 2):
        errors = ranks.run(disagree, 3, what, odd)
        others = [rank for rank in range(3) if rank != odd]
        for rank, error in enumerate(errors):
            assert type(error) is xccl.Mismatch
            assert error.ranks == (others if rank == odd else [odd])
            assert first in str(error)
            assert second in str(error)
            assert f"rank {rank} " in str(error)


def refuse(comm):
    """Calls that are wrong on this rank alone say so before anything is sent; the next call works."""
    read_only = np.zeros(4)
    read_only.flags.writeable = False
    grid = np.zeros((2, 6))
    rows = np.zeros((4, 2))
    wrong = {
        "expected (2, ...)": [lambda: comm.all_to_all(np.zeros(3)), lambda: comm.all_to_all(np.zeros(()))],
        "a has no dimensions": [
            lambda: comm.all_gather_v(np.zeros(())),
            lambda: comm.all_to_all_v(np.zeros(()), [1, 0]),
        ],
        "a is a list": [lambda: comm.all_to_all([1, 2]), lambda: comm.broadcast([1, 2])],
        "holds Python objects": [
            lambda: comm.broadcast(np.array([None])),
            lambda: comm.all_to_all(np.array([None] * 2)),
        ],
        "send_counts add up to 3: expected 4": [lambda: comm.all_to_all_v(rows, [1, 2])],
        "expected no negative": [lambda: comm.all_to_all_v(rows, [5, -1])],
        "expected (2,) whole numbers": [
            lambda: comm.all_to_all_v(rows, [1, 2, 1]),
            lambda: comm.all_to_all_v(rows, [1.0, 3.0]),
            lambda: comm.all_to_all_v(rows, np.array([[1, 3]])),
        ],
        "root=2: expected 0 to 1": [lambda: comm.broadcast(np.zeros(3), 2)],
        "root='0'": [lambda: comm.broadcast(np.zeros(3), "0")],
        "a is read-only": [lambda: comm.broadcast(read_only)],
        "a is not C-contiguous": [lambda: comm.broadcast(np.zeros((4, 4))[:, ::2])],
        "out has shape (2, 5) and dtype float64: expected": [
            lambda: comm.all_to_all(grid, out=np.zeros((2, 5)))
        ],
        "shape (n, 2) and dtype float64": [
            lambda: comm.all_gather_v(rows, out=np.zeros((9, 3))),
            lambda: comm.all_gather_v(rows, out=np.zeros(9)),
            lambda: comm.all_to_all_v(rows, [2, 2], out=np.zeros((9, 2), "f4")),
        ],
        "out is a list": [
            lambda: comm.all_gather_v(rows, out=[1]),
            lambda: comm.broadcast(np.zeros(3), out=[0] * 3),
        ],
        "the output overlaps the input": [
            lambda: comm.all_to_all(grid, out=grid),
            lambda: comm.all_gather(grid[0], out=grid) if comm.rank else comm.all_gather(grid[1], out=grid),
            lambda: comm.all_to_all_v(rows, [2, 2], out=rows),
        ],
        "timeout=0": [lambda: comm.all_to_all(grid, timeout=0)],
    }
    for text, calls in wrong.items():
        for call in calls:
            error = error_of(call)
            assert type(error) is xccl.InvalidArgument, text
            assert text in str(error)
    assert comm.all_gather(np.array([comm.rank])).tolist() == [[0], [1]]


def test_wrong_arguments_are_named_before_anything_is_sent(ranks):
    ranks.run(refuse, 2)


def in_place(comm):
    every = np.full((comm.size, 3), -1)
    every[comm.rank] = comm.rank
    assert comm.all_gather(every[comm.rank], out=every) is every
    assert every.tolist() == [[rank] * 3 for rank in range(comm.size)]


def test_all_gather_takes_a_ranks_own_place_in_the_result(ranks):
    ranks.run(in_place, 3)


def give_other_kinds(comm):
    class Wrapped:
        def __init__(self, array):
            self.__array_interface__ = array.__array_interface__
            self.array = array

    data = bytearray([comm.rank] * 5)
    comm.broadcast(data, 1)
    assert data == bytes([1] * 5)
    assert comm.all_gather(b"ab").tolist() == [[97, 98]] * comm.size
    assert comm.all_to_all(Wrapped(np.arange(comm.size))).tolist() == [comm.rank] * comm.size
    rows, _ = comm.all_gather_v(memoryview(np.arange(comm.rank)))
    assert rows.tolist() == [0, 0, 1]


def test_anything_that_is_an_array_is_taken(ranks):
    ranks.run(give_other_kinds, 3)


def in_sub_groups(comm):
    """Both halves at once, with other sizes; then all together."""
    sub = comm.split(comm.rank % 2)
    members = [rank for rank in range(comm.size) if rank % 2 == comm.rank % 2]
    for number in range(20):
        a = np.arange(sub.size * 300) + comm.rank + number
        pieces = a.reshape(sub.size, 300)
        others = [np.arange(sub.size * 300).reshape(sub.size, 300) + rank + number for rank in members]
        np.testing.assert_array_equal(sub.all_to_all(pieces), np.stack([one[sub.rank] for one in others]))
        np.testing.assert_array_equal(sub.all_reduce(a), sum(one.ravel() for one in others))
        np.testing.assert_array_equal(sub.all_gather(a), np.stack([one.ravel() for one in others]))
        root = number % sub.size
        np.testing.assert_array_equal(sub.broadcast(a.copy(), root=root), others[root].ravel())
        np.testing.assert_array_equal(
            sub.reduce_scatter(pieces, op="max"), np.stack(others).max(axis=0)[sub.rank]
        )
        assert comm.all_gather(np.array([comm.rank])).ravel().tolist() == list(range(comm.size))
    if comm.size < 5 or comm.rank % 2 == 0:
        return None
    differ = error_of(sub.all_gather, np.zeros(3 + (comm.rank == 3)))
    return type(differ), differ.ranks


@pytest.mark.parametrize("size", [2, 5])
def test_sub_groups_work_at_the_same_time_and_name_ranks_of_the_job(ranks, size):
    found = ranks.run(in_sub_groups, size)
    if size == 2:
        assert found == [None, None]
    else:
        assert found[1] == (xccl.Mismatch, [3])
        assert found[3] == (xccl.Mismatch, [1])
        assert found[0] is found[2] is found[4] is None
