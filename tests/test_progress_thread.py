"""The progress thread: what has been started goes on while Python computes; nothing else is different with it."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from ranks import error_of, mark, marked, threads_of, wait_until
from test_async import SHAPE, batches_of, given, open_ep, work
from truth import combined, dispatched, same_bits, scale

import xccl

LARGE = 1 << 20  # bytes of a message that needs the help of both sides


def compute_until(condition, seconds=60.0):
    """Work of the program's own: no call of the library."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was started does not go on"
        sum(range(1000))


@pytest.fixture
def with_thread(ranks):
    return ranks.variables(XCCL_PROGRESS_THREAD="1")


# --- It goes on ---


def finish_halves_while_computing(comm):
    batches = batches_of(comm, 2)
    with open_ep(comm) as ep:
        for _ in range(3):
            pending = ep.dispatch_async(*given(batches[comm.rank]))
            compute_until(lambda p=pending: p.done)
            with pending.wait() as d:
                same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
                work(ep, d)
                pending = ep.combine_async(d.x, d)
                compute_until(lambda p=pending: p.done)
                assert pending.test()
                same_bits(pending.wait(), combined(batches[comm.rank], SHAPE, scale))


def test_second_halves_are_done_while_python_computes(with_thread):
    with_thread.run(finish_halves_while_computing, 3)


def wait_for_ever_without_it(comm, folder):
    batches = batches_of(comm, 2)
    with open_ep(comm) as ep:
        pending = ep.dispatch_async(*given(batches[comm.rank]))
        mark(folder, f"started-{comm.rank}")
        compute_until(lambda: all(marked(folder, f"started-{rank}") for rank in range(comm.size)))
        for _ in range(100):
            sum(range(1000))
            assert not pending.done
        pending.wait().release()


def test_without_it_they_are_not(ranks, tmp_path):
    ranks.run(wait_for_ever_without_it, 2, tmp_path)


def exchange_while_computing(comm, folder):
    """Rank 0 starts both and computes until rank 1 has sent and received all."""
    there, back = np.arange(LARGE, dtype=np.uint8), np.zeros(LARGE, np.uint8)
    if comm.rank == 0:
        requests = [comm.irecv(back, 1), comm.isend(there, 1)]
        compute_until(lambda: marked(folder, "all"))
        [request.wait() for request in requests]
        np.testing.assert_array_equal(back, there[::-1])
    else:
        comm.send(np.ascontiguousarray(there[::-1]), 0)
        comm.recv(back, 0)
        np.testing.assert_array_equal(back, there)
        mark(folder, "all")


def test_messages_go_on_while_python_computes(with_thread, tmp_path):
    with_thread.run(exchange_while_computing, 2, tmp_path)


def send_in_vain(comm, folder):
    if comm.rank == 0:
        back = np.zeros(LARGE, np.uint8)
        request = comm.irecv(back, 1)
        compute_until(lambda: marked(folder, "given up"))
        request.wait()
    else:
        assert type(error_of(comm.send, np.ones(LARGE, np.uint8), 0, timeout=0.2)) is xccl.Timeout
        mark(folder, "given up")
        comm.send(np.ones(LARGE, np.uint8), 0)


def test_without_it_a_message_waits_for_the_receivers_next_call(ranks, tmp_path):
    ranks.run(send_in_vain, 2, tmp_path)


def join_with_it_on_rank_0(part, folder):
    with part.init(progress_thread=part.rank == 0) as comm:
        exchange_while_computing(comm, folder)


def test_one_rank_may_have_it_alone(processes, tmp_path):
    processes.run(join_with_it_on_rank_0, 2, tmp_path, joins=False)


# --- Nothing else is different ---


def calls_of_all_kinds(comm):
    """No call is refused because the thread is at work, on the same communicator or another."""
    with open_ep(comm) as first, open_ep(comm) as second, comm.split(0) as sub:
        for call in range(60):
            batches = batches_of(comm, call)
            mine = batches[comm.rank]
            pending = first.dispatch_async(*given(mine))
            assert comm.all_reduce(np.ones(3, np.int64)).tolist() == [comm.size] * 3
            with second.dispatch(*given(mine)) as d:
                same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
            request = sub.isend(np.full(40_000, call), (comm.rank + 1) % comm.size)
            got = np.empty(40_000, np.int64)
            sub.recv(got, (comm.rank - 1) % comm.size)
            assert (got == call).all()
            with pending.wait() as d:
                same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
                work(first, d)
                pending = first.combine_async(d.x, d)
                comm.barrier()
                same_bits(pending.wait(), combined(mine, SHAPE, scale))
            request.wait()


@pytest.mark.parametrize("size", [3, 8])
def test_calls_beside_it_are_never_refused(with_thread, size):
    with_thread.run(calls_of_all_kinds, size)


def use_in_two_threads(comm, entered):
    if comm.rank == 0:
        inside = threading.Thread(target=lambda: comm.recv(np.zeros(1), 1))
        inside.start()
        assert type(error_of(lambda: wait_until(lambda: comm.iprobe(1), "an error"))) is xccl.InvalidArgument
        entered.set()
        inside.join()
    else:
        assert entered.wait(60)
        comm.send(np.zeros(1), 0)


def test_two_threads_of_the_program_are_refused_as_ever(threads):
    threads.variables(XCCL_PROGRESS_THREAD="1").run(use_in_two_threads, 2, threading.Event())


def drop_what_is_under_way(comm):
    batch = batches_of(comm, 1)[comm.rank]
    ep = open_ep(comm)
    pending = ep.dispatch_async(*given(batch))
    if comm.rank % 2:
        ep.close()
        assert type(error_of(pending.wait)) is xccl.Closed
    else:
        pending.wait()
        ep.close()


def test_closing_between_the_halves_is_as_ever(with_thread):
    with_thread.run(drop_what_is_under_way, 3)


def drop_pending_and_arrays(comm):
    batch = batches_of(comm, 1)[comm.rank]
    ep = open_ep(comm)
    x = np.array(batch.x)
    given_once = weakref.ref(x)
    pending = ep.dispatch_async(x, batch.topk_idx, batch.topk_weights)
    del pending, x
    gc.collect()
    assert given_once() is not None
    comm.barrier()
    ep.close()
    gc.collect()
    assert given_once() is None


def test_arrays_live_as_long_as_the_thread_may_read_them(with_thread):
    """Also if nobody keeps the pending."""
    with_thread.run(drop_pending_and_arrays, 2)


def join_often(part):
    counts = []
    for _ in range(8):
        with part.init(progress_thread=True) as comm:
            comm.barrier()
            inside = threads_of(os.getpid())
        counts.append((inside, threads_of(os.getpid())))
    return counts


def test_it_ends_with_the_communicator(processes):
    for counts in processes.run(join_often, 2, joins=False):
        assert len(set(counts)) == 1
        inside, outside = counts[0]
        assert inside == outside + 1


def fork_with_work_under_way(comm):
    with open_ep(comm) as ep:
        pending = ep.dispatch_async(*given(batches_of(comm, 1)[comm.rank]))
        child = os.fork()
        if child == 0:
            closed = all(type(error_of(call)) is xccl.Closed for call in (pending.wait, comm.barrier))
            os._exit(0 if closed else 1)
        assert os.waitpid(child, 0)[1] == 0
        pending.wait().release()
        comm.barrier()


def test_the_child_of_a_fork_has_none_and_ends(processes):
    processes.variables(XCCL_PROGRESS_THREAD="1").run(fork_with_work_under_way, 2)


def compute_beside_a_death(comm, folder):
    with_error = open_ep(comm)
    if comm.rank == 1:
        mark(folder, "here")
        time.sleep(600)
    pending = with_error.dispatch_async(*given(batches_of(comm, 1)[comm.rank]))
    mark(folder, f"started-{comm.rank}")
    compute_until(lambda: marked(folder, "killed"))
    assert not pending.done
    error = error_of(pending.wait)
    comm.shrink().close()
    return error


def test_a_death_is_named_by_the_wait(processes, tmp_path):
    def kill_one(running):
        for name in ("here", "started-0", "started-2"):
            wait_until(lambda name=name: marked(tmp_path, name), name)
        os.kill(running.pids[1], signal.SIGKILL)
        mark(tmp_path, "killed")

    ranks = processes.variables(XCCL_PROGRESS_THREAD="1")
    outcomes = ranks.outcomes(compute_beside_a_death, 3, tmp_path, meanwhile=kill_one)
    for rank in (0, 2):
        error = outcomes[rank].value
        assert (type(error), error.ranks) == (xccl.PeerLost, [1]), outcomes[rank]
        assert error.op == "dispatch"


def make_another_call(comm):
    """What the thread finds, the wait tells: the same as without a thread."""
    ep = open_ep(comm)
    batch = batches_of(comm, 1)[comm.rank]
    d = ep.dispatch(*given(batch))
    if comm.rank == 0:
        error = error_of(lambda: ep.combine_async(d.x, d).wait())
    else:
        pending = ep.dispatch_async(*given(batch))
        compute_until(lambda: pending.done)
        error = error_of(pending.wait)
    return type(error), error.op, error.seq, str(error).split("rank")[0]


def test_a_mismatch_that_it_finds_is_raised_by_the_wait(with_thread):
    for found in with_thread.run(make_another_call, 2):
        assert found[0] is xccl.Mismatch, found
    assert found[1:3] == ("dispatch", 2)


# --- Asking for it ---


@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_a_value_that_means_nothing_is_refused(monkeypatch, value):
    monkeypatch.setenv("XCCL_PROGRESS_THREAD", value)
    with pytest.raises(xccl.InvalidArgument, match=r"XCCL_PROGRESS_THREAD.*expected 0 or 1"):
        xccl.init()


def test_the_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("XCCL_PROGRESS_THREAD", "1")
    before = threads_of(os.getpid())
    with xccl.init(progress_thread=False):
        assert threads_of(os.getpid()) == before
    with xccl.init():
        assert threads_of(os.getpid()) == before + 1
    with pytest.raises(xccl.InvalidArgument, match="progress_thread='on': expected True or False"):
        xccl.init(progress_thread="on")
