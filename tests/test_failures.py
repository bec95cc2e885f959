"""When ranks disagree, are late, fail, close or die, every rank learns what happened, to whom, and soon.

After the first error of a collective the communicator refuses further use and names that first cause.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from ranks import error_of, mark, marked, sleeps_steadily, state_of, wait_until
from test_dispatch_combine import shape_arguments
from truth import Shape, random_batch, same_bits

import xccl

SHAPE = Shape(num_experts=4, hidden=16, max_tokens=4, topk=2)


def open_ep(comm, **changes):
    return xccl.ExpertParallel(comm, *shape_arguments(SHAPE), **changes)


def dispatch(ep, rank, **options):
    batch = random_batch(np.random.default_rng(rank), SHAPE, 4)
    return ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights, **options)


def first_cause_and_refusal(comm, call):
    """The error of a call, and that of the next use of the communicator."""
    return error_of(call), error_of(comm.barrier)


# --- Disagreement -------------------------------------------------------------------------------------------------


def disagree_about(comm, field, values):
    arguments = {
        "num_experts": 4,
        "hidden": 16,
        "max_tokens": 4,
        "topk": 2,
        "dtype": "bfloat16",
        "results": 2,
    }
    error = error_of(lambda: xccl.ExpertParallel(comm, **{**arguments, field: values[comm.rank]}))
    # All ranks know that there is no such object, so they may agree and try again.
    with xccl.ExpertParallel(comm, **arguments) as ep:
        dispatch(ep, comm.rank).release()
    return error


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_experts", [4, 5, 4]),
        ("hidden", [16, 17, 16]),
        ("max_tokens", [4, 8, 4]),
        ("topk", [2, 1, 2]),
        ("dtype", ["bfloat16", "float16", "bfloat16"]),
        ("results", [2, 3, 2]),
    ],
)
def test_different_arguments_are_a_mismatch_that_names_the_field_and_the_ranks(
    either_provider, field, values
):
    errors = either_provider.run(disagree_about, 3, field, values)
    assert [type(error) for error in errors] == [xccl.Mismatch] * 3
    assert [error.ranks for error in errors] == [[1], [0, 2], [1]]
    for rank, error in enumerate(errors):
        assert f"rank {rank} has {field}={values[rank]}" in str(error)
        assert str(values[1 if rank != 1 else 0]) in str(error)


def call_differently(comm):
    ep = open_ep(comm)
    d = dispatch(ep, comm.rank)
    if comm.rank == 1:
        return first_cause_and_refusal(comm, lambda: dispatch(ep, comm.rank))
    return first_cause_and_refusal(comm, lambda: ep.combine(d.x, d))


def test_dispatch_on_one_rank_and_combine_on_another_is_a_mismatch_on_both(ranks):
    outcomes = ranks.run(call_differently, 2)
    for rank, (error, refusal) in enumerate(outcomes):
        assert type(error) is type(refusal) is xccl.Mismatch
        assert error.ranks == refusal.ranks == [1 - rank]
        assert error.seq == 2
        assert "a new dispatch" in str(error)
        assert "combine of the result of dispatch #1" in str(error)
        assert "failed before" in str(refusal)
    assert [error.op for error, _ in outcomes] == ["combine", "dispatch"]


def combine_different_results(comm):
    ep = open_ep(comm)
    results = [dispatch(ep, comm.rank), dispatch(ep, comm.rank)]
    d = results[comm.rank]
    return error_of(ep.combine, d.x, d)


def test_combining_the_results_of_different_dispatches_is_a_mismatch(ranks):
    for error in ranks.run(combine_different_results, 2):
        assert type(error) is xccl.Mismatch
        assert "dispatch #1" in str(error)
        assert "dispatch #2" in str(error)


def gather_different_sizes(comm):
    return error_of(comm.all_gather, np.zeros(3 + (comm.rank == 2)))


def test_all_gather_of_different_sizes_names_the_ranks_that_differ(ranks):
    errors = ranks.run(gather_different_sizes, 3)
    assert [type(error) for error in errors] == [xccl.Mismatch] * 3
    assert [error.ranks for error in errors] == [[2], [2], [0, 1]]
    assert "rank 0 gives 24 bytes, rank 2 gives 32" in str(errors[0])


# --- Late ranks -------------------------------------------------------------------------------------------------


def come_late(comm, folder):
    """Rank 1 has done a dispatch and does not come to the next one before the others have given up."""
    ep = open_ep(comm)
    dispatch(ep, comm.rank).release()
    if comm.rank == 1:
        wait_until(lambda: marked(folder, "late-0") and marked(folder, "late-2"), "the others have given up")
        return error_of(comm.barrier)
    error, refusal = first_cause_and_refusal(comm, lambda: dispatch(ep, comm.rank, timeout=0.3))
    mark(folder, f"late-{comm.rank}")
    return error, refusal


def test_a_timeout_names_the_late_rank_and_what_it_does(ranks, tmp_path):
    first, late, last = ranks.run(come_late, 3, tmp_path)
    causes = [pair[0] for pair in (first, last)]
    # Rank 2 may hear of rank 0's timeout before its own time is up.
    assert any(type(error) is xccl.Timeout for error in causes)
    for error in causes:
        if type(error) is xccl.Timeout:
            assert error.ranks == [1]
            assert (error.op, error.seq, error.phase) == ("dispatch", 2, "waiting")
            assert "rank 1: alive, outside XCCL since dispatch #1" in str(error)
            assert "0.3 s" in str(error)
        else:
            assert type(error) is xccl.PeerFailed
    assert all("failed before" in str(refusal) for _, refusal in (first, last))
    assert type(late) is xccl.PeerFailed


def never_come(comm, folder):
    """Rank 1 is in no call at all, as far as others can see."""
    if comm.rank == 1:
        wait_until(lambda: marked(folder, "late"), "rank 0 has given up")
        return None
    error = error_of(comm.barrier, timeout=0.2)
    mark(folder, "late")
    return error


def test_a_timeout_says_when_the_late_rank_has_done_nothing_yet(either_provider, tmp_path):
    error = either_provider.run(never_come, 2, tmp_path)[0]
    assert type(error) is xccl.Timeout
    assert isinstance(error, TimeoutError)
    assert (error.op, error.seq, error.ranks) == ("barrier", 1, [1])
    assert "rank 1: alive, in no XCCL call yet" in str(error)


def make_alone(comm, folder):
    if comm.rank == 1:
        return wait_until(lambda: marked(folder, "late"), "rank 0 has given up")
    error = error_of(open_ep, comm, timeout=0.2)
    mark(folder, "late")
    return error


def test_making_an_expert_parallel_has_a_deadline_of_its_own(either_provider, tmp_path):
    error = either_provider.run(make_alone, 2, tmp_path)[0]
    assert type(error) is xccl.Timeout
    assert (error.op, error.ranks) == ("ExpertParallel", [1])
    assert "0.2 s" in str(error)


# --- Ranks that leave ----------------------------------------------------------------------------------------


def close_early(comm):
    ep = open_ep(comm)
    dispatch(ep, comm.rank).release()
    if comm.rank == 1:
        return comm.close()
    return first_cause_and_refusal(comm, lambda: dispatch(ep, comm.rank))


def test_those_who_wait_for_a_rank_that_has_closed_get_closed(ranks):
    for outcome in ranks.run(close_early, 3)[::2]:
        # One of the two may learn from the other that it is in vain.
        assert all(type(error) in (xccl.Closed, xccl.PeerFailed) for error in outcome)
    error, refusal = ranks.run(close_early, 2)[0]
    assert type(error) is type(refusal) is xccl.Closed
    assert error.ranks == [1]
    assert "rank 1 has closed its communicator" in str(error)


def close_while_others_wait(comm, folder):
    if comm.rank == 0:
        mark(folder, "waiting")
        return error_of(comm.barrier)
    wait_until(lambda: marked(folder, "waiting"), "rank 0 is about to wait")
    return comm.close()


def test_a_rank_that_closes_ends_the_wait_of_the_others(ranks, tmp_path):
    error = ranks.run(close_while_others_wait, 2, tmp_path)[0]
    assert type(error) is xccl.Closed
    assert error.ranks == [1]


def fail_in_a_with_block(part):
    try:
        with part.init() as comm:
            comm.barrier()
            if comm.rank == 1:
                raise LookupError("the cause, with ümlauts")
            comm.barrier()
    except xccl.Error as error:
        return error.with_traceback(None)
    except LookupError as error:
        return error.with_traceback(None)


def test_an_exception_in_a_with_block_is_told_to_the_others(ranks):
    errors = ranks.run(fail_in_a_with_block, 3, joins=False)
    assert type(errors[1]) is LookupError
    for error in errors[::2]:
        assert type(error) is xccl.PeerFailed
        assert error.ranks == [1]
        assert "LookupError: the cause, with ümlauts" in str(error)


def fail_while_others_wait_elsewhere(part, folder):
    """Rank 1 fails in its block; the others wait for it in a sub-group and in a shrunk duplicate."""
    try:
        with part.init() as comm:
            sub, copy = comm.split(0), comm.shrink()
            nested = sub.split(0)
            mark(folder, f"made-{comm.rank}")
            if comm.rank == 1:
                wait_until(lambda: all(marked(folder, f"made-{rank}") for rank in range(4)), "all are made")
                raise LookupError("the cause")
            return error_of({0: nested, 2: copy, 3: sub}[comm.rank].barrier)
    except LookupError:
        return None


def test_an_exception_is_told_in_all_communicators_made_of_the_one_it_leaves(ranks, tmp_path):
    first, _, *others = ranks.run(fail_while_others_wait_elsewhere, 4, tmp_path, joins=False)
    for error in (first, *others):
        assert type(error) is xccl.PeerFailed
        assert error.ranks == [1]
        assert "LookupError: the cause" in str(error)


def abort(comm):
    # Only when nobody is in the barrier any more: its last word to a rank need not be rank 0's.
    comm.barrier()
    if comm.rank != 0:
        comm.send(np.empty(0), 0)
    else:
        for _ in range(comm.size - 1):
            comm.recv(np.empty(0))
        comm.abort("enough " + "x" * 10_000)
    return first_cause_and_refusal(comm, comm.barrier)


def test_abort_tells_everybody_the_reason_and_a_long_one_is_cut(either_provider):
    mine, *others = either_provider.run(abort, 3)
    for error in mine:
        assert type(error) is xccl.Error
        assert "this rank has aborted the communicator: enough" in str(error)
        assert error.op == "abort"
    for error, refusal in others:
        assert type(error) is type(refusal) is xccl.PeerFailed
        assert error.ranks == [0]
        assert "enough xxx" in str(error)
        assert len(str(error)) < 700


# --- Ranks that die -------------------------------------------------------------------------------------------


def wait_in_a_barrier(comm, folder):
    """Rank 0 waits for nobody, so that the others stay in the barrier until they are disturbed."""
    comm.barrier()
    mark(folder, f"ready-{comm.rank}")
    if comm.rank == 0:
        wait_until(lambda: marked(folder, "killed"), "a rank has been killed")
    # A rank that had told everybody that it has arrived is not needed for this barrier, but it is for the next.
    error = error_of(barriers_for_ever, comm)
    return error, time.monotonic(), error_of(comm.barrier)


def barriers_for_ever(comm):
    while True:
        comm.barrier()


def dispatches_for_ever(ep, rank):
    while True:
        dispatch(ep, rank).release()


def wait_in_a_dispatch(comm, folder):
    ep = open_ep(comm)
    d = dispatch(ep, comm.rank)
    mark(folder, f"ready-{comm.rank}")
    if comm.rank == 0:
        wait_until(lambda: marked(folder, "killed"), "a rank has been killed")
    error = error_of(dispatches_for_ever, ep, comm.rank)
    moment = time.monotonic()
    assert np.isfinite(d.x.astype(np.float32)).all()  # what had been returned is still there
    return error, moment, error_of(ep.combine, d.x, d)


def killer(folder, size, victim, log):
    """Kills one rank once all are ready, and notes when."""

    def kill(running):
        wait_until(lambda: all(marked(folder, f"ready-{rank}") for rank in range(size)), "all are ready")
        wait_until(lambda: state_of(running.pids[victim]) == "S", "the victim sleeps in its wait")
        log["killed"] = time.monotonic()
        os.kill(running.pids[victim], signal.SIGKILL)
        mark(folder, "killed")

    return kill


@pytest.mark.parametrize("waiting", [wait_in_a_barrier, wait_in_a_dispatch])
def test_a_killed_rank_is_lost_to_the_others_within_two_seconds(processes, tmp_path, waiting):
    log = {}
    outcomes = processes.outcomes(waiting, 4, tmp_path, meanwhile=killer(tmp_path, 4, 2, log))
    assert outcomes[2].exitcode == -signal.SIGKILL
    for outcome in outcomes[:2] + outcomes[3:]:
        assert outcome.fine, outcome.trace
        error, moment, refusal = outcome.value
        assert type(error) is type(refusal) is xccl.PeerLost
        assert isinstance(error, ConnectionError)
        assert error.ranks == refusal.ranks == [2]
        assert "rank 2 has died" in str(error)
        assert moment - log["killed"] < 2.0


def die_while_others_compute(comm, folder):
    comm.barrier()
    mark(folder, f"ready-{comm.rank}")
    # The barrier before is complete for everybody: the death shows in the next call.
    wait_until(lambda: marked(folder, "killed"), "a rank has been killed")
    return error_of(comm.barrier)


def test_a_death_between_calls_shows_in_the_next_call(processes, tmp_path):
    outcomes = processes.outcomes(die_while_others_compute, 3, tmp_path, meanwhile=killer(tmp_path, 3, 0, {}))
    for outcome in outcomes[1:]:
        assert type(outcome.value) is xccl.PeerLost
        assert outcome.value.ranks == [0]


def die_after_a_failure(comm, folder):
    sub = comm.split(0)
    if comm.rank == 2:
        sub.abort("enough")
    failure = error_of(sub.barrier)
    comm.barrier()
    mark(folder, f"ready-{comm.rank}")
    if comm.rank == 2:
        return error_of(barriers_for_ever, comm)
    wait_until(lambda: marked(folder, "killed"), "a rank has been killed")
    return failure, error_of(barriers_for_ever, comm), error_of(sub.barrier)


def test_a_rank_that_has_failed_in_a_sub_group_can_still_die(processes, tmp_path):
    outcomes = processes.outcomes(die_after_a_failure, 3, tmp_path, meanwhile=killer(tmp_path, 3, 2, {}))
    for outcome in outcomes[:2]:
        assert outcome.fine, outcome.trace
        failure, death, refusal = outcome.value
        assert type(failure) is type(refusal) is xccl.PeerFailed
        assert type(death) is xccl.PeerLost
        assert death.ranks == [2]


def forget_to_close(part, folder):
    """A communicator that goes away without close() ends like one that was closed."""
    comm = part.init()
    comm.barrier()
    if comm.rank == 1:
        del comm
        return mark(folder, "gone")
    error = error_of(comm.barrier)
    comm.close()
    return error


def test_a_communicator_that_is_dropped_counts_as_closed(either_provider, tmp_path):
    error = either_provider.run(forget_to_close, 2, tmp_path, joins=False)[0]
    assert type(error) is xccl.Closed
    assert error.ranks == [1]


def die_at_random(comm, folder):
    """Rounds until somebody dies. What is returned before is right."""
    ep = open_ep(comm)
    batches = [random_batch(np.random.default_rng(rank), SHAPE, 4) for rank in range(comm.size)]
    mine = batches[comm.rank]
    first = None
    while True:
        try:
            with ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights) as d:
                y = ep.combine(d.x, d)
        except xccl.Error as error:
            return error.with_traceback(None)
        if first is None:
            first = y
            mark(folder, f"busy-{comm.rank}")
        same_bits(y, first)


@pytest.mark.parametrize("moment", range(4))
def test_a_death_at_any_moment_of_a_busy_job_is_told_and_leaves_nothing(processes, tmp_path, moment):
    def kill(running):
        wait_until(lambda: all(marked(tmp_path, f"busy-{rank}") for rank in range(3)), "all are busy")
        time.sleep(0.0007 * moment)  # where in a round it hits is the subject
        os.kill(running.pids[1], signal.SIGKILL)

    outcomes = processes.outcomes(die_at_random, 3, tmp_path, meanwhile=kill)
    assert outcomes[1].exitcode == -signal.SIGKILL
    for outcome in outcomes[::2]:
        assert outcome.fine, outcome.trace
        assert type(outcome.value) is xccl.PeerLost
        assert outcome.value.ranks == [1]


# --- Ctrl-C ----------------------------------------------------------------------------------------------------


def wait_to_be_interrupted(comm, folder):
    if comm.rank == 1:
        try:
            comm.barrier()
        except xccl.Error as error:
            return error.with_traceback(None)
    mark(folder, "waiting")
    try:
        if comm.rank == 0:
            comm.all_gather(np.zeros(3))
    except KeyboardInterrupt:
        return "interrupted", error_of(comm.barrier)
    return "not interrupted"


def interrupt_the_wait(pid, folder):
    wait_until(lambda: marked(folder, "waiting"), "the rank is about to wait")
    wait_until(lambda: sleeps_steadily(pid), "it sleeps in its wait")
    os.kill(pid, signal.SIGINT)


def test_ctrl_c_in_a_wait_raises_keyboard_interrupt_and_tells_the_others(processes, tmp_path):
    def interrupt(running):
        interrupt_the_wait(running.pids[0], tmp_path)

    outcomes = processes.outcomes(wait_to_be_interrupted, 2, tmp_path, meanwhile=interrupt)
    said, refusal = outcomes[0].value
    assert said == "interrupted"
    assert "interrupted in all_gather #1" in str(refusal)
    assert type(outcomes[1].value) is xccl.PeerFailed
    assert outcomes[1].value.ranks == [0]


A_HANDLER_THAT_WAITS = """
import signal
import numpy as np, xccl
outer, inner = xccl.init(provider="local"), xccl.init(provider="local")
told = []
def wait(comm, timeout):
    try:
        comm.recv(np.empty(1), 0, timeout=timeout)
    except xccl.Error as error:
        told.append(type(error).__name__)
def handle(*_):
    wait(outer, 0.1)
    wait(inner, 0.1)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.2)
wait(outer, 1)
print(*told)
"""


def test_a_signal_handler_may_wait_in_another_communicator():
    line = [sys.executable, "-c", A_HANDLER_THAT_WAITS]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["InvalidArgument", "Timeout", "Timeout"]


def wait_for_a_missing_rank(part, folder, rank):
    mark(folder, "waiting")
    try:
        replace(part, rank=rank, size=2).init(startup_timeout=60)
    except KeyboardInterrupt:
        return "interrupted"


@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_interrupts_the_start_of_a_job(processes, tmp_path, rank):
    def interrupt(running):
        interrupt_the_wait(running.pids[0], tmp_path)

    found = processes.run(wait_for_a_missing_rank, 1, tmp_path, rank, joins=False, meanwhile=interrupt)
    assert found == ["interrupted"]


# --- Fork -------------------------------------------------------------------------------------------------------


def fork_and_use(comm):
    """The child of a rank is no rank: its calls raise, and what it does not do harms nobody."""
    ep = open_ep(comm)
    d = dispatch(ep, comm.rank)
    ours = comm.empty((1000, 1000), "float32")
    ours[:] = comm.rank + 1
    rows = np.array(d.x)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = (
            comm.barrier,
            lambda: comm.empty(3),
            lambda: dispatch(ep, comm.rank),
            lambda: ep.combine(rows, d),
            lambda: ep.input_buffer(1),
            lambda: open_ep(comm),
        )
        names = [type(error_of(call)).__name__ for call in calls]
        del d, ours
        ep.close()
        comm.close()
        os.write(writer, ",".join(names).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert (ours == comm.rank + 1).all()
    same_bits(d.x, rows)
    comm.barrier()
    same_bits(ep.combine(d.x, d), ep.combine(rows, d))
    return said


def test_a_forked_child_is_no_rank_and_does_not_harm_its_parent(processes):
    for said in processes.run(fork_and_use, 2):
        assert said.split(",") == ["Closed"] * 6


def fork_and_die(comm, folder):
    """Rank 1 is killed while a child of its own lives on: that does not hide its death."""
    if comm.rank == 1:
        child = os.fork()
        if child == 0:
            wait_until(lambda: marked(folder, "seen"), "the death has been seen")
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    error = error_of(comm.barrier)
    mark(folder, "seen")
    return error


def test_a_living_child_does_not_hide_the_death_of_a_rank(processes, tmp_path):
    outcomes = processes.outcomes(fork_and_die, 2, tmp_path)
    assert type(outcomes[0].value) is xccl.PeerLost
    assert outcomes[0].value.ranks == [1]


# --- A thread that waits does not stop the others -----------------------------------------------------------


def count_while_waiting(comm, folder):
    if comm.rank == 1:
        wait_until(lambda: marked(folder, "counted"), "rank 0 has counted while it waited")
        comm.barrier()
        return None
    entered = threading.Event()

    def count():
        entered.wait()
        for _ in range(100_000):
            pass
        mark(folder, "counted")

    thread = threading.Thread(target=count)
    thread.start()
    entered.set()
    comm.barrier()
    thread.join()


def test_a_wait_lets_other_python_threads_run(ranks, tmp_path):
    ranks.run(count_while_waiting, 2, tmp_path)


def construct_against_all_gather(comm):
    """As many bytes as the library itself exchanges when an ExpertParallel is made."""
    if comm.rank == 0:
        return error_of(xccl.ExpertParallel, comm, 2, 4, 2, 1, "float32")
    return error_of(comm.all_gather, np.zeros(72, np.uint8))


def test_an_object_made_on_one_rank_and_a_gather_on_another_is_a_mismatch_on_both(either_provider):
    for error in either_provider.run(construct_against_all_gather, 2):
        assert type(error) is xccl.Mismatch
        assert "calls ExpertParallel" in str(error)
        assert "calls all_gather" in str(error)
