"""Sub-groups: who is in them, that they work by themselves, and that they give back what they took.

Their collectives are compared with numpy in test_collectives.py.
"""

from __future__ import annotations

import numpy as np
from ranks import error_of

import xccl


def groups(comm):
    sub = comm.split(comm.rank % 2, key=-comm.rank)
    none = comm.split(-1 if comm.rank == 0 else 5)
    members = sub.all_gather(np.array([comm.rank])).ravel().tolist()
    left = (sub.rank - 1) % sub.size
    y = np.empty(1, np.int64)
    sub.sendrecv(np.array([comm.rank]), (sub.rank + 1) % sub.size, y, src=left)
    ep = xccl.ExpertParallel(sub, 4, 8, 4, 2, dtype="float32")
    x = np.full((2, 8), comm.rank, np.float32)
    d = ep.dispatch(x, np.array([[0, 1], [2, 3]]), np.full((2, 2), 0.5, np.float32))
    out = ep.combine(d.x, d)
    d.release()
    ep.close()
    sub.close()
    return members, int(y[0]), none is None, bool((out == x).all())


def test_sub_groups_have_ranks_by_key_and_work_by_themselves(ranks):
    results = ranks.run(groups, 5)
    for rank, (members, left, alone, same) in enumerate(results):
        expected = [4, 2, 0] if rank % 2 == 0 else [3, 1]
        assert members == expected
        assert left == expected[(expected.index(rank) - 1) % len(expected)]
        assert alone == (rank == 0)
        assert same


def fail_in_one_of_several(comm):
    first, second = comm.split(0), comm.split(0)
    causes = []
    for sub, culprit in (first, 0), (second, 1):
        comm.barrier()
        if comm.rank == culprit:
            sub.abort(f"rank {culprit} has enough")
        causes.append(error_of(sub.barrier))
        # The communicator it was split from goes on, and so does the next one.
        assert comm.all_gather(np.array([comm.rank])).ravel().tolist() == list(range(comm.size))
    third = comm.split(0)
    third.barrier()
    return causes, [error_of(sub.barrier) for sub in (first, second)]


def test_a_failure_ends_the_sub_group_in_which_it_happened_and_no_other(ranks):
    for rank, outcomes in enumerate(ranks.run(fail_in_one_of_several, 3)):
        for errors in outcomes:
            for culprit, error in enumerate(errors):
                assert f"rank {culprit} has enough" in str(error)
                assert type(error) is (xccl.Error if rank == culprit else xccl.PeerFailed)
                assert error.ranks == ([] if rank == culprit else [culprit])


def many_splits(comm):
    before = None
    for i in range(60):
        sub = comm.split(comm.rank // 2)
        nested = sub.split(0)
        ep = xccl.ExpertParallel(sub, 4, 8, 4, 2, dtype="float32")
        sub.barrier()
        sub.send(np.arange(500), sub.rank)
        sub.recv(np.empty(500, np.int64))
        parts = [nested, ep, sub]
        for part in parts[i % 2 :] + parts[: i % 2]:  # inside out, or the one nested last
            part.close()
        comm.barrier()
        if i == 10:
            before = comm.committed_bytes
    return comm.committed_bytes - before


def test_sub_groups_give_back_what_they_took(ranks):
    assert max(ranks.run(many_splits, 3)) <= 1 << 20


def many_forgotten_splits(comm):
    before = None
    for i in range(20):
        sub = comm.split(0)
        sub.all_gather(np.zeros(100_000, np.uint8))
        del sub  # others may still be reading what this rank gave them
        if i == 10:
            before = comm.committed_bytes
    return comm.committed_bytes - before


def test_a_sub_group_that_is_forgotten_gives_back_what_it_took(ranks):
    assert max(ranks.run(many_forgotten_splits, 3)) <= 1 << 20


def unread_messages(comm):
    before = None
    for i in range(30):
        sub = comm.split(0)
        sub.send(np.ones(4000, np.uint8), sub.rank)  # which nobody will ask for
        if sub.rank == 0:
            sub.send(np.ones(4000, np.uint8), 1)
            sub.close()
            comm.barrier()
        else:
            comm.barrier()  # rank 0 has closed
            sub.recv(np.empty(4000, np.uint8), 0)
            sub.close()
        if i == 5:
            before = comm.committed_bytes
    return comm.committed_bytes - before


def test_messages_that_were_unread_when_a_sub_group_closed_do_not_keep_their_memory(ranks):
    assert ranks.run(unread_messages, 2) == [0, 0]
