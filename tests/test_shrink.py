"""What survivors do after a failure: shrink agrees on who is left, and the new communicator works like any other.

Who raises what and when: test_failures.py. Ranks that are threads, and leave at every step: tests/native/shrink.cpp.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from ranks import error_of, mark, marked, state_of, wait_until

import xccl


def everybody(comm, job_rank):
    """The ranks in the job of all members, in their order here, as they tell each other."""
    return comm.all_gather(np.array([job_rank])).ravel().tolist()


def check_everything(comm, job_rank, array=None):
    """All kinds of calls work, with an array of an earlier communicator's area as well."""
    rank, size = comm.rank, comm.size
    x = np.full(50_000, rank, np.int64) if array is None else array
    x[:] = rank
    y = np.empty_like(x)
    for n in (1, 500, 50_000):  # inlined, buffered, pulled or streamed
        comm.sendrecv(x[:n], (rank + 1) % size, y[:n], (rank - 1) % size)
        assert (y[:n] == (rank - 1) % size).all()
    comm.barrier()
    assert comm.all_reduce(x[:10]).tolist() == [sum(range(size))] * 10
    assert (comm.all_gather(x) == np.arange(size)[:, None]).all()
    assert comm.broadcast(x[:3].copy(), root=size - 1).tolist() == [size - 1] * 3
    assert comm.all_to_all(np.arange(size)).tolist() == [rank] * size
    rows, counts = comm.all_to_all_v(np.full((size, 2), rank), np.ones(size, np.int64))
    assert rows[:, 0].tolist() == list(range(size))
    assert counts.tolist() == [1] * size
    assert comm.reduce_scatter(np.ones((size, 2), np.float32)).tolist() == [size, size]
    with comm.split(rank % 2) as sub:
        assert sub.size == (size + 1 - rank % 2) // 2
        sub.barrier()
    with xccl.ExpertParallel(comm, 5, 16, 4, 2, dtype="float32") as ep:
        tokens = np.full((4, 16), rank + 1, np.float32)
        with ep.dispatch(tokens, np.tile([0, 4], (4, 1)), np.full((4, 2), 0.5, np.float32)) as d:
            assert (ep.combine(d.x, d) == tokens).all()
    return everybody(comm, job_rank)


def killer(folder, size, victims):
    """Kills ranks one after the other, each once all but the ones before are ready for it."""

    def kill(running):
        for number, victim in enumerate(victims):
            left = [rank for rank in range(size) if rank not in victims[:number]]
            names = [f"ready-{number}-{rank}" for rank in left]
            wait_until(
                lambda n=names: all(marked(folder, one) for one in n) or not running.still_going(), "ready"
            )
            os.kill(running.pids[victim], signal.SIGKILL)
            mark(folder, f"killed-{number}")

    return kill


def barriers_for_ever(comm):
    while True:
        comm.barrier()


# --- After deaths ---


def go_on_after_deaths(comm, folder, victims):
    job_rank, current, seen = comm.rank, comm, []
    array = comm.empty(50_000, "int64")
    contents = comm.empty(1000, "float32")
    contents[:] = job_rank
    for number in range(len(victims)):
        mark(folder, f"ready-{number}-{job_rank}")
        cause = error_of(barriers_for_ever, current)
        assert type(cause) is xccl.PeerLost
        assert cause.ranks == [victims[number]]
        following = current.shrink()
        # The old one still refuses, with the first cause.
        for call in (
            current.barrier,
            lambda old=current: old.isend(contents, 0),
            lambda old=current: old.split(0),
        ):
            again = error_of(call)
            assert type(again) is xccl.PeerLost
            assert (again.ranks, again.op, again.seq, again.phase) == (
                cause.ranks,
                cause.op,
                cause.seq,
                cause.phase,
            )
        current.close()
        current = following
        seen.append(check_everything(current, job_rank, array))
        assert (contents == job_rank).all()
    current.close()
    return seen


@pytest.mark.parametrize("direct", ["1", "0"])
@pytest.mark.parametrize("victims", [[0, 3], [3, 1], [2, 0, 1]])
def test_survivors_of_deaths_go_on_one_fewer_each_time(processes, tmp_path, victims, direct):
    processes = processes.variables(XCCL_DIRECT=direct)
    outcomes = processes.outcomes(
        go_on_after_deaths, 4, tmp_path, victims, meanwhile=killer(tmp_path, 4, victims)
    )
    for outcome in outcomes:
        if outcome.rank in victims:
            assert outcome.exitcode == -signal.SIGKILL
            continue
        assert outcome.fine, outcome.trace
        assert outcome.value == [
            [rank for rank in range(4) if rank not in victims[: n + 1]] for n in range(len(victims))
        ]


def shrink_the_same_again(comm, folder):
    """Two deaths, and both times it is the first communicator that is shrunk."""
    job_rank = comm.rank
    found = []
    for number in range(2):
        mark(folder, f"ready-{number}-{job_rank}")
        wait_until(lambda n=number: marked(folder, f"killed-{n}"), "a rank has been killed")
        error_of(barriers_for_ever, comm)
        survivors = comm.shrink()
        found.append(everybody(survivors, job_rank))
        survivors.close()
    return found


def test_a_communicator_can_be_shrunk_again_after_another_death(processes, tmp_path):
    outcomes = processes.outcomes(shrink_the_same_again, 4, tmp_path, meanwhile=killer(tmp_path, 4, [1, 2]))
    for outcome in (outcomes[0], outcomes[3]):
        assert outcome.fine, outcome.trace
        assert outcome.value == [[0, 2, 3], [0, 3]]


def shrink_while_others_die(comm, folder, seed):
    """Shrinks until the two are left that nobody kills."""
    job_rank, current = comm.rank, comm
    rng = np.random.default_rng(seed * 10 + job_rank)
    mark(folder, f"ready-0-{job_rank}")
    error_of(barriers_for_ever, comm)
    while True:
        time.sleep(rng.uniform(0, 0.003))
        current = current.shrink()
        try:
            found = everybody(current, job_rank)
            if len(found) == 2:
                current.close()
                return found
            barriers_for_ever(current)
        except xccl.PeerLost:
            pass


@pytest.mark.parametrize("seed", range(8))
def test_all_survivors_agree_also_when_ranks_die_during_shrink(processes, tmp_path, seed):
    rng = np.random.default_rng(seed)
    victims = rng.permutation(5)[:3].tolist()
    if seed % 2:
        victims = sorted(victims)  # those who decide, one after the other

    def kill(running):
        wait_until(lambda: all(marked(tmp_path, f"ready-0-{rank}") for rank in range(5)), "all are ready")
        for victim in victims:
            os.kill(running.pids[victim], signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.008))  # where in shrink the next one hits is the subject

    outcomes = processes.outcomes(shrink_while_others_die, 5, tmp_path, seed, meanwhile=kill)
    left = [rank for rank in range(5) if rank not in victims]
    for rank in left:
        assert outcomes[rank].fine, outcomes[rank].trace
        assert outcomes[rank].value == left


def shrink_a_sub_group(comm, folder):
    job_rank = comm.rank
    sub = comm.split(job_rank % 2, key=-job_rank)
    comm.barrier()
    mark(folder, f"ready-0-{job_rank}")
    if job_rank % 2:
        wait_until(lambda: marked(folder, "killed-0"), "a rank has been killed")
        return everybody(sub, job_rank)  # nobody of it has died
    cause = error_of(barriers_for_ever, sub)
    with sub.shrink() as survivors:
        return cause.ranks, check_everything(survivors, job_rank)


def test_a_sub_group_shrinks_and_its_sibling_does_not_notice(processes, tmp_path):
    outcomes = processes.outcomes(shrink_a_sub_group, 6, tmp_path, meanwhile=killer(tmp_path, 6, [2]))
    for rank in (0, 4):
        assert outcomes[rank].fine, outcomes[rank].trace
        assert outcomes[rank].value == ([2], [4, 0])
    for rank in (1, 3, 5):
        assert outcomes[rank].fine, outcomes[rank].trace
        assert outcomes[rank].value == [5, 3, 1]


def die_in_dispatch(comm, folder):
    """What had been dispatched before the death stays readable; its array serves in the new communicator."""
    job_rank = comm.rank
    ep = xccl.ExpertParallel(comm, 6, 32, 8, 2, dtype="float32")
    x = comm.empty((8, 32), "float32")
    x[:] = job_rank
    idx, weights = np.tile([0, 5], (8, 1)), np.full((8, 2), 0.5, np.float32)
    d = ep.dispatch(x, idx, weights)
    rows = np.array(d.x)
    mark(folder, f"ready-0-{job_rank}")

    def dispatches_for_ever():
        while True:
            ep.dispatch(x, idx, weights).release()

    cause = error_of(dispatches_for_ever)
    survivors = comm.shrink()
    ep.close()
    comm.close()
    assert (d.x == rows).all()
    with xccl.ExpertParallel(survivors, 6, 32, 8, 2, dtype="float32") as again:
        for _ in range(3):
            with again.dispatch(x, idx, weights) as e:
                assert (again.combine(e.x, e) == x).all()
    survivors.close()
    return type(cause).__name__, cause.ranks


@pytest.mark.parametrize("direct", ["1", "0"])
def test_expert_parallel_goes_on_with_fewer_ranks(processes, tmp_path, direct):
    outcomes = processes.variables(XCCL_DIRECT=direct).outcomes(
        die_in_dispatch, 3, tmp_path, meanwhile=killer(tmp_path, 3, [1])
    )
    for outcome in outcomes[::2]:
        assert outcome.fine, outcome.trace
        assert outcome.value == ("PeerLost", [1])


# --- After failures ---


def shrink_after_an_exception(part):
    """Rank 1 leaves its block by an exception; the others go on without it."""
    try:
        with part.init() as comm:
            if comm.rank == 1:
                raise LookupError("the cause")
            cause = error_of(comm.barrier)
            assert type(cause) is xccl.PeerFailed
            assert cause.ranks == [1]
            assert "LookupError: the cause" in str(cause)
            survivors = comm.shrink()
            return check_everything(survivors, part.rank)
    except LookupError:
        return error_of(comm.shrink)


def test_a_rank_that_raised_is_left_out(ranks):
    found = ranks.run(shrink_after_an_exception, 4, joins=False)
    assert type(found[1]) is xccl.Closed
    assert found[::2] + found[3:] == [[0, 2, 3]] * 3


def abort_and_shrink(comm):
    if comm.rank == 2:
        comm.abort("had enough")
        return error_of(comm.shrink), error_of(comm.barrier), error_of(comm.recv, np.empty(1))
    cause = error_of(comm.barrier)
    with comm.shrink() as survivors:
        return cause, everybody(survivors, comm.rank)


def test_who_aborts_is_refused_and_left_out(ranks):
    *others, (shrinking, barrier, recv) = ranks.run(abort_and_shrink, 3)
    assert type(shrinking) is xccl.Closed
    assert "this rank has aborted the communicator" in str(shrinking)
    for refusal in (barrier, recv):
        assert type(refusal) is xccl.Error
        assert "this rank has aborted the communicator: had enough" in str(refusal)
    for cause, members in others:
        assert type(cause) is xccl.PeerFailed
        assert cause.ranks == [2]
        assert "rank 2 failed: had enough" in str(cause)
        assert members == [0, 1]


def come_late(comm, folder):
    """Rank 1 is late for a barrier, which ends the communicator; nobody has gone, so all are there again."""
    if comm.rank == 1:
        wait_until(lambda: marked(folder, "gave-up-0") and marked(folder, "gave-up-2"), "both have given up")
        cause = error_of(comm.barrier)
    else:
        cause = error_of(comm.barrier, timeout=0.2)
        mark(folder, f"failed-{comm.rank}")
        wait_until(lambda: marked(folder, "failed-0") and marked(folder, "failed-2"), "both have failed")
        late = error_of(comm.shrink, timeout=1)
        assert type(late) is xccl.Timeout
        assert (late.op, late.phase, late.ranks) == ("shrink", "meeting", [1])
        assert "rank 1: alive" in str(late)
        mark(folder, f"gave-up-{comm.rank}")
    with comm.shrink() as again:
        return type(cause).__name__, everybody(again, comm.rank)


def test_shrink_names_the_late_and_goes_on_when_they_come(either_provider, tmp_path):
    found = either_provider.run(come_late, 3, tmp_path)
    assert [members for _, members in found] == [[0, 1, 2]] * 3
    assert found[1][0] == "PeerFailed"
    assert {found[0][0], found[2][0]} <= {"Timeout", "PeerFailed"}


def shrink_beside_a_stopped_rank(comm, folder):
    if comm.rank == 1:
        mark(folder, "there")
        wait_until(lambda: marked(folder, "gave-up-0") and marked(folder, "gave-up-2"), "both have given up")
        error_of(comm.barrier)
        with comm.shrink() as again:
            return everybody(again, 1)
    wait_until(lambda: marked(folder, "stopped"), "rank 1 is stopped")
    error_of(comm.barrier, timeout=0.2)
    mark(folder, f"failed-{comm.rank}")
    wait_until(lambda: marked(folder, "failed-0") and marked(folder, "failed-2"), "both have failed")
    late = error_of(comm.shrink, timeout=1)
    assert late.ranks == [1]
    mark(folder, f"gave-up-{comm.rank}")
    with comm.shrink() as again:
        return everybody(again, comm.rank)


def test_a_stopped_rank_is_late_and_not_dead(processes, tmp_path):
    def stop(running):
        wait_until(lambda: marked(tmp_path, "there"), "rank 1 is there")
        os.kill(running.pids[1], signal.SIGSTOP)
        wait_until(lambda: state_of(running.pids[1]) == "T", "it is stopped")
        mark(tmp_path, "stopped")
        try:
            wait_until(
                lambda: marked(tmp_path, "gave-up-0") and marked(tmp_path, "gave-up-2"), "both gave up"
            )
        finally:
            os.kill(running.pids[1], signal.SIGCONT)

    found = processes.run(shrink_beside_a_stopped_rank, 3, tmp_path, meanwhile=stop)
    assert found == [[0, 1, 2]] * 3


def interrupt_shrink(comm, folder):
    """Ctrl-C ends a call of shrink, and changes nothing: the next call goes on."""
    if comm.rank == 1:
        wait_until(lambda: marked(folder, "interrupted"), "rank 0 has been interrupted")
    else:
        mark(folder, "waiting")
        with pytest.raises(KeyboardInterrupt):
            comm.shrink()
        mark(folder, "interrupted")
    with comm.shrink() as again:
        return everybody(again, comm.rank)


def test_ctrl_c_in_shrink_changes_nothing(processes, tmp_path):
    def interrupt(running):
        wait_until(lambda: marked(tmp_path, "waiting"), "rank 0 is about to wait")
        time.sleep(0.05)
        os.kill(running.pids[0], signal.SIGINT)

    assert processes.run(interrupt_shrink, 2, tmp_path, meanwhile=interrupt) == [[0, 1]] * 2


# --- Nothing has failed ---


def duplicate(comm):
    first, second = comm.shrink(), comm.shrink()
    found = [everybody(one, comm.rank) for one in (first, comm, second)]
    # They are independent: a message on one is none on another.
    first.send(np.array([1]), comm.rank)
    assert second.iprobe() is None
    assert comm.iprobe() is None
    first.recv(np.empty(1, np.int64))
    comm.barrier()
    second.abort("only this one") if comm.rank == 0 else error_of(second.barrier)
    found.append(check_everything(first, comm.rank))
    comm.barrier()
    return found


def test_a_communicator_in_which_nothing_failed_is_duplicated(ranks):
    assert ranks.run(duplicate, 3) == [[[0, 1, 2]] * 4] * 3


def many_shrinks(comm):
    before = None
    for i in range(60):
        again = comm.shrink()
        again.barrier()
        again.send(np.arange(500), again.rank)
        again.recv(np.empty(500, np.int64))
        again.close()
        comm.barrier()
        if i == 10:
            before = comm.committed_bytes
    return comm.committed_bytes - before


def test_shrunk_communicators_give_back_what_they_took(ranks):
    assert max(ranks.run(many_shrinks, 3)) <= 1 << 20


def in_two_threads(comm):
    """Communicators shrink independently of each other."""
    one, two = comm.split(0), comm.split(0)
    found = {}

    def work(name, sub):
        for _ in range(20):
            with sub.shrink() as again:
                found[name] = everybody(again, comm.rank)

    threads = [threading.Thread(target=work, args=item) for item in (("one", one), ("two", two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_shrink_communicators_of_their_own(ranks):
    assert ranks.run(in_two_threads, 2) == [{"one": [0, 1], "two": [0, 1]}] * 2


def misuse(comm):
    if comm.rank == 0:
        with pytest.raises(xccl.InvalidArgument, match="timeout"):
            comm.shrink(timeout=-1)
        with pytest.raises(xccl.InvalidArgument, match="reason"):
            comm.abort(3)
    comm.barrier()
    comm.close()
    return error_of(comm.shrink)


def test_wrong_arguments_and_closed_communicators_are_refused(either_provider):
    for error in either_provider.run(misuse, 2):
        assert type(error) is xccl.Closed
        assert "the communicator is closed" in str(error)
