"""dispatch_async and combine_async: the same rows and sums in two halves, and what may happen between them."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from ranks import error_of, mark, marked, wait_until
from truth import Shape, combined, dispatched, random_batch, same_bits, scale

import xccl

SHAPE = Shape(num_experts=5, hidden=24, max_tokens=6, topk=2)


def open_ep(comm, **options):
    return xccl.ExpertParallel(comm, SHAPE.num_experts, SHAPE.hidden, SHAPE.max_tokens, SHAPE.topk, **options)


def batches_of(comm, call):
    return [
        random_batch(np.random.default_rng((rank, call)), SHAPE, (rank + call) % 7)
        for rank in range(comm.size)
    ]


def given(batch):
    return batch.x, batch.topk_idx, batch.topk_weights


def work(ep, d):
    for i, expert in enumerate(ep.local_experts):
        rows = d.expert(i)
        rows[:] = scale(expert, rows)


def mixed_calls(comm):
    """Each rank takes a call in one piece or in two, by its own luck: the others cannot tell."""
    luck = np.random.default_rng(comm.rank)
    with open_ep(comm) as ep:
        for call in range(40):
            batches = batches_of(comm, call)
            mine = batches[comm.rank]
            if luck.random() < 0.5:
                d = ep.dispatch(*given(mine))
            else:
                pending = ep.dispatch_async(*given(mine))
                while luck.random() < 0.5 and not pending.test():
                    time.sleep(0)
                d = pending.wait()
                assert pending.done
                assert pending.test()
                assert pending.wait() is d
            with d:
                same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
                work(ep, d)
                if luck.random() < 0.5:
                    y = ep.combine(d.x, d)
                else:
                    out = np.empty_like(mine.x)
                    pending = ep.combine_async(d.x, d, out=out)
                    y = pending.wait()
                    assert y is out
            same_bits(y, combined(mine, SHAPE, scale))


def test_in_one_piece_or_in_two_the_rows_and_sums_are_the_same(ranks):
    ranks.run(mixed_calls, 3)


def two_micro_batches(comm):
    """The shape of overlap: while experts work on one micro-batch, the other is on its way."""
    with open_ep(comm) as first, open_ep(comm) as second:
        eps = (first, second)
        started = eps[0].dispatch_async(*given(batches_of(comm, 0)[comm.rank]))
        combining = None
        for call in range(20):
            ep, other = eps[call % 2], eps[(call + 1) % 2]
            d = started.wait()
            if combining is not None:
                before, pending = combining
                same_bits(pending.wait(), combined(before, SHAPE, scale))
            mine = batches_of(comm, call)[comm.rank]
            started = other.dispatch_async(*given(batches_of(comm, call + 1)[comm.rank]))
            work(ep, d)
            combining = mine, ep.combine_async(d.x, d)
            d.release()  # the rows stay until they have been combined
        before, pending = combining
        same_bits(pending.wait(), combined(before, SHAPE, scale))
        started.wait().release()


def test_two_objects_overlap_two_micro_batches(ranks):
    ranks.run(two_micro_batches, 3)


def others_pull_while_this_one_computes(comm, computing, pulled):
    """Rank 0 does nothing of the library between its halves; the others end theirs meanwhile."""
    with open_ep(comm) as ep:
        batches = batches_of(comm, 3)
        pending = ep.dispatch_async(*given(batches[comm.rank]))
        if comm.rank == 0:
            computing.set()
            assert all(event.wait(60) for event in pulled)  # computes until the others have its rows
            d = pending.wait()
        else:
            assert computing.wait(60)
            d = pending.wait()
            pulled[comm.rank - 1].set()
        same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
        d.release()


def test_communication_goes_on_while_a_rank_computes(threads):
    threads.run(
        others_pull_while_this_one_computes, 3, threading.Event(), [threading.Event() for _ in range(2)]
    )


def one_at_a_time(comm):
    found = {}
    with open_ep(comm) as ep, open_ep(comm) as other:
        batches = batches_of(comm, 3)
        mine = batches[comm.rank]
        bad = error_of(ep.dispatch_async, mine.x.astype(np.float32), *given(mine)[1:])
        pending = ep.dispatch_async(*given(mine))
        found = {
            "dispatch #1 has been started": error_of(ep.dispatch, *given(mine)),
            "wait for it first": error_of(ep.dispatch_async, *given(mine)),
            "another ExpertParallel may": error_of(ep.set_placement, ep.placement),
            "x has dtype float32": bad,
        }
        comm.barrier()  # other things go on
        with other.dispatch(*given(mine)) as d:
            same_bits(other.combine(d.x, d), combined(mine, SHAPE))
        d = pending.wait()
        pending = ep.combine_async(d.x, d)
        found["combine #2 has been started"] = error_of(ep.combine, d.x, d)
        same_bits(pending.wait(), combined(mine, SHAPE))
        d.release()
    return found


def test_an_object_has_one_call_under_way_and_says_so(either_provider):
    for found in either_provider.run(one_at_a_time, 2):
        for text, error in found.items():
            assert type(error) is xccl.InvalidArgument
            assert text in str(error)


def results_are_counted(comm):
    with open_ep(comm, results=1) as ep:
        mine = batches_of(comm, 3)[comm.rank]
        pending = ep.dispatch_async(*given(mine))
        d = pending.wait()
        error = error_of(ep.dispatch_async, *given(mine))
        del pending  # it knows the result
        d.release()
        del d
        with ep.dispatch(*given(mine)) as d:
            same_bits(ep.combine(d.x, d), combined(mine, SHAPE))
        return error


def test_a_started_dispatch_counts_as_a_result(threads):
    for error in threads.run(results_are_counted, 2):
        assert type(error) is xccl.OutOfMemory
        assert "results=2" in str(error)


def close_between_the_halves(comm):
    ep = open_ep(comm)
    batches = batches_of(comm, 3)
    pending = ep.dispatch_async(*given(batches[comm.rank]))
    if comm.rank == 0:
        ep.close()
        return error_of(pending.wait)
    d = pending.wait()  # what rank 0 had published is still there
    same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
    d.release()
    ep.close()
    return None


def test_close_between_the_halves_leaves_what_was_published(either_provider):
    error, nothing = either_provider.run(close_between_the_halves, 2)
    assert type(error) is xccl.Closed
    assert nothing is None


def keeps_what_it_reads(comm):
    found = []
    with open_ep(comm) as ep:
        mine = batches_of(comm, 3)[comm.rank]
        x = ep.input_buffer(len(mine.x))
        x[:] = mine.x
        pending = ep.dispatch_async(x, *given(mine)[1:])
        ep.input_buffer(1)[:] = -1  # the other one
        found.append(error_of(ep.input_buffer, 1))
        with pending.wait() as d:
            rows = d.output_buffer()
            rows[:] = d.x
            pending = ep.combine_async(rows, d)
            found.append(error_of(d.output_buffer))
            same_bits(pending.wait(), combined(mine, SHAPE))
            d.output_buffer()
    return found


def test_a_buffer_that_is_still_read_is_not_given_out(either_provider):
    for first, second in either_provider.run(keeps_what_it_reads, 2):
        assert type(first) is type(second) is xccl.InvalidArgument
        assert "the input buffer is in use until dispatch #1" in str(first)
        assert "the result is in use until combine #2" in str(second)


def drop(comm):
    """What is dropped stays started: the others get its rows, the object is good for closing only."""
    ep = open_ep(comm)
    batches = batches_of(comm, 3)
    pending = ep.dispatch_async(*given(batches[comm.rank]))
    if comm.rank == 0:
        del pending
        error = error_of(ep.dispatch, *given(batches[0]))
    else:
        error = None
        with pending.wait() as d:
            same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
    ep.close()
    comm.barrier()
    return error


def test_a_pending_that_is_dropped_stays_started(either_provider):
    error, nothing = either_provider.run(drop, 2)
    assert type(error) is xccl.InvalidArgument
    assert "not been waited for" in str(error)
    assert nothing is None


def fork_between_the_halves(comm):
    with open_ep(comm) as ep:
        mine = batches_of(comm, 3)[comm.rank]
        pending = ep.dispatch_async(*given(mine))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            names = [type(error_of(call)).__name__ for call in (pending.wait, pending.test)]
            os.write(writer, ",".join(names).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        with pending.wait() as d:
            same_bits(ep.combine(d.x, d), combined(mine, SHAPE))
    return said


def test_a_forked_child_finishes_nothing_and_the_parent_does(processes):
    assert processes.run(fork_between_the_halves, 2) == ["Closed,Closed"] * 2


def wait_in_two_threads(comm, one_is_inside):
    """While one thread waits for a late rank another is turned away; afterwards it has the same result."""
    with open_ep(comm) as ep:
        batches = batches_of(comm, 3)
        if comm.rank == 1:
            assert one_is_inside.wait(60)
        pending = ep.dispatch_async(*given(batches[comm.rank]))
        if comm.rank == 1:
            pending.wait().release()
            return None
        found = []
        waiting = threading.Thread(target=lambda: found.append(pending.wait(60)))
        waiting.start()
        refused = []

        def is_inside():
            try:
                assert not pending.test()
            except xccl.InvalidArgument as error:
                refused.append(str(error))
            return bool(refused)

        wait_until(is_inside, "the thread is inside its wait")
        one_is_inside.set()
        waiting.join(60)
        with pending.wait() as d:
            assert d is found[0]
            same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
        return refused[0]


def test_a_second_thread_is_turned_away_and_disturbs_nothing(threads):
    refused, nothing = threads.run(wait_in_two_threads, 2, threading.Event())
    assert "another thread is inside a call" in refused
    assert nothing is None


def late(comm):
    with open_ep(comm) as ep:
        mine = batches_of(comm, 3)[comm.rank]
        if comm.rank == 1:
            return error_of(comm.barrier)
        pending = ep.dispatch_async(*given(mine))
        assert not pending.test()
        assert not pending.done
        first = error_of(pending.wait, 0.2)
        return first, error_of(pending.wait), error_of(pending.test)


def test_a_late_rank_is_named_and_the_communicator_ends(either_provider):
    (first, again, asked), told = either_provider.run(late, 2)
    assert type(first) is xccl.Timeout
    assert first.ranks == [1]
    assert first.op == "dispatch"
    assert type(again) is xccl.Timeout
    assert type(asked) is xccl.Timeout
    assert type(told) is xccl.PeerFailed
    assert told.ranks == [0]


def wait_for_the_dead(comm, folder, how):
    ep = open_ep(comm)
    mine = batches_of(comm, 3)[comm.rank]
    if comm.rank == 1:
        mark(folder, "here")
        time.sleep(600)
    pending = ep.dispatch_async(*given(mine))
    mark(folder, f"started-{comm.rank}")

    def ask():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if pending.test():
                return
            time.sleep(0.001)

    error = error_of(pending.wait if how == "wait" else ask)
    comm.shrink().close()
    return error


@pytest.mark.parametrize("how", ["wait", "test"])
def test_a_death_between_the_halves_is_named_and_the_others_shrink(processes, tmp_path, how):
    def kill_one(running):
        for name in ("here", "started-0", "started-2"):
            wait_until(lambda name=name: marked(tmp_path, name), name)
        os.kill(running.pids[1], signal.SIGKILL)

    outcomes = processes.outcomes(wait_for_the_dead, 3, tmp_path, how, meanwhile=kill_one)
    for rank in (0, 2):
        assert type(outcomes[rank].value) is xccl.PeerLost, outcomes[rank]
        assert outcomes[rank].value.ranks == [1]
        assert outcomes[rank].value.op == "dispatch"
        assert outcomes[rank].value.seq == 1
