"""`wait_stats`: who waited for whom, and that the late rank is told from those that waited for it.

Lateness is the subject, so these tests do sleep; what they ask is that a wait lasted at least most of a known sleep.
"""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

import xccl

LATE_S = 0.6
AT_LEAST_S = 0.4


def together(comm, late):
    """One rank comes late to a call of each kind, one after the other."""
    with xccl.ExpertParallel(comm, 4, 8, 4, 2, dtype="float32") as ep:
        comm.barrier()
        comm.reset_wait_stats()
        comm.barrier()
        x, idx = np.ones((2, 8), np.float32), np.zeros((2, 2), np.int64)
        found = []
        for call in (
            comm.barrier,
            lambda: comm.all_reduce(np.ones(4, np.float32)),
            lambda: ep.dispatch(x, idx, np.ones((2, 2), np.float32)).release(),
        ):
            before = comm.wait_stats()
            comm.barrier()  # all have looked
            if comm.rank == late:
                time.sleep(LATE_S)
            call()
            comm.barrier()  # the waits above have ended on all ranks
            found.append((before, comm.wait_stats()))
            comm.barrier()
        return found


def test_the_late_rank_is_told_from_those_that_wait(ranks):
    size, late = 4, 2
    for found in ranks.run(together, size, late):
        for before, after in found:
            for matrix in (after.count, after.total, after.longest):
                assert matrix.shape == (size, size)
            total, count = after.total - before.total, after.count - before.count
            others = [rank for rank in range(size) if rank != late]
            assert (total[others, late] >= AT_LEAST_S).all(), total
            assert (after.longest[others, late] >= AT_LEAST_S).all()
            assert (count[others, late] >= 1).all()
            assert int(after.late.argmax()) == late
            assert after.late[late] >= (size - 1) * AT_LEAST_S
            assert after.waited[late] < after.waited[others].min()
            assert (after.longest <= after.total + 1e-9).all()
            assert np.allclose(after.waited, after.total.sum(axis=1))


def messages(comm):
    """Rank 1 lets rank 0 wait for a message: first from it, then from anybody."""
    got = np.empty(3, np.uint8)
    found = []
    for src in (1, xccl.ANY_SOURCE):
        comm.barrier()
        comm.reset_wait_stats()
        comm.barrier()
        if comm.rank == 1:
            time.sleep(LATE_S)
            comm.send(np.ones(3, np.uint8), 0)
        if comm.rank == 0:
            comm.recv(got, src)
            found.append(comm.wait_stats())
    return found


def test_a_receive_waits_for_its_source_or_for_nobody_in_particular(ranks):
    from_one, from_any = ranks.run(messages, 3)[0]
    assert from_one.total[0, 1] >= AT_LEAST_S
    assert from_one.count[0, 1] >= 1
    assert from_one.total[0, 0] < AT_LEAST_S
    assert from_any.total[0, 0] >= AT_LEAST_S
    assert from_any.total[0, 1] < AT_LEAST_S


def resets(comm):
    if comm.rank == 0:
        time.sleep(LATE_S)
    comm.barrier()
    comm.barrier()
    before = comm.wait_stats()
    comm.barrier()
    if comm.rank == 1:
        comm.reset_wait_stats()
        mine = comm.wait_stats()
        assert mine.count[1].sum() == 0
        assert mine.total[1].sum() == 0
        assert mine.longest[1].sum() == 0
        assert mine.total[2, 0] >= before.total[2, 0]  # another's row is another's affair
    comm.barrier()
    return before.total[1, 0], before.total[2, 0]


def test_reset_begins_the_own_row_anew(either_provider):
    for found in either_provider.run(resets, 3):
        assert min(found) >= AT_LEAST_S


def in_a_group(comm):
    with comm.split(comm.rank % 2, key=-comm.rank) as group:  # rank 3 of the job is rank 0 of its group
        group.barrier()
        if comm.rank == 3:
            time.sleep(LATE_S)
        group.barrier()
        group.barrier()
        stats = group.wait_stats()
    comm.barrier()
    return stats.total


def test_the_matrix_of_a_group_has_its_members_only(either_provider):
    found = either_provider.run(in_a_group, 4)
    assert all(total.shape == (2, 2) for total in found)
    for rank in (1, 3):
        assert found[rank][1, 0] >= AT_LEAST_S
        assert found[rank][0, 1] < AT_LEAST_S


def after_a_death(comm):
    if comm.rank == 1:
        time.sleep(LATE_S)
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises((xccl.PeerLost, xccl.PeerFailed)):
        comm.barrier()
    return comm.wait_stats().total


def test_statistics_outlive_a_rank(processes):
    outcomes = processes.outcomes(after_a_death, 3)
    for rank in (0, 2):
        assert outcomes[rank].value[rank, 1] >= AT_LEAST_S, outcomes[rank]


def test_the_table_names_the_late_rank():
    total = np.array([[0.5, 0.0, 3.0], [0.25, 0.0, 2.0], [0.0, 0.125, 0.0]])
    stats = xccl.WaitStats(np.ones((3, 3), np.int64), total, total / 2)
    text = str(stats)
    assert "rank 2 was waited for most: 5.000 s in all, 1.500 s at once; it waited 0.125 s itself" in text
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["rank", "0", "-", "0.000", "3.000", "0.500", "3.500"]
    assert lines[4] == ["late", "0.250", "0.125", "5.000"]


def test_the_table_of_many_ranks_lists_the_longest_waits():
    total = np.zeros((64, 64))
    total[7, 33] = 2.0
    stats = xccl.WaitStats((total > 0).astype(np.int64), total, total)
    lines = str(stats).splitlines()
    assert len(lines) < 30
    assert lines[1] == "rank 7 for rank 33: 2.000 in 1 waits, at most 2.000"
