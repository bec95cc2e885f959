"""Barrier and all_gather: what they promise, on any number of ranks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from ranks import mark, marked, wait_until

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


def several_slots(rank, number):
    """More than the 64 KiB that go in one round, and not a multiple."""
    return np.arange(50_001, dtype=np.int32) * (rank + 1) + number


def every_other_column(rank, number):
    return (np.arange(20).reshape(4, 5) + rank + number)[:, ::2]


@pytest.mark.parametrize("make", [small, scalar, empty, rows_of_bfloat16, several_slots, every_other_column])
def test_all_gather_stacks_what_the_ranks_give(ranks, make):
    for size in (1, 2, 5):
        ranks.run(gather, size, make, 10)


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
