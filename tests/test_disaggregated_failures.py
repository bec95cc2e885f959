"""What goes wrong between attention and expert ranks: who is told what, and that nobody is left waiting."""

from __future__ import annotations

import contextlib
import os
import signal

import numpy as np
import pytest
from ranks import error_of, mark, marked, sleeps_steadily, wait_until
from truth import Shape, random_batch

import xccl

ROUTINGS = ["direct", "trampoline"]
SHAPE = {"num_experts": 6, "hidden": 24, "max_tokens": 4, "topk": 2, "dtype": "float32"}
ATTENTION, EXPERTS = 2, 3


def tokens(rank):
    shape = Shape(6, 24, 4, 2, "float32")
    batch = random_batch(np.random.default_rng(rank), shape, 4)
    return batch.x, batch.topk_idx, batch.topk_weights


# --- Making one ------------------------------------------------------------------------------------------------


def make_differently(comm, argument, values, options):
    mine = values[0] if comm.rank == 0 else values[1]
    error = error_of(xccl.DisaggregatedExperts, comm, 1, **{**SHAPE, **options, argument: mine})
    comm.barrier()  # the communicator is as good as before
    return error


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("num_experts", (6, 7)),
        ("hidden", (24, 12)),
        ("max_tokens", (4, 5)),
        ("topk", (2, 1)),
        ("dtype", ("float32", "float16")),
        ("dispatch_quant", ("int8", None)),
        ("combine_quant", (None, "int8")),
        ("micro_batches", (1, 2)),
        ("placement", ([[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3, 4, 5]])),
        ("shared_experts", ([], [1])),
    ],
)
def test_ranks_that_give_different_arguments_are_all_told_which(threads, argument, values, routing):
    found = threads.run(make_differently, 3, argument, values, {"routing": routing})
    for rank, error in enumerate(found):
        assert type(error) is xccl.Mismatch, error
        assert f"rank {rank} has {argument}={values[rank > 0]!r}" in str(error)
        assert error.ranks == ([1, 2] if rank == 0 else [0])


def make_in_another_way(comm, argument, values):
    return error_of(xccl.DisaggregatedExperts, comm, 2, **SHAPE, **{argument: values[comm.rank > 0]})


@pytest.mark.parametrize(("argument", "values"), [("routing", ROUTINGS), ("domains", ([[0, 1]], [[0], [1]]))])
def test_ranks_that_go_another_way_are_all_told(threads, argument, values):
    for rank, error in enumerate(threads.run(make_in_another_way, 3, argument, values)):
        assert type(error) is xccl.Mismatch
        assert f"{argument}={values[rank > 0]!r}" in str(error)


def make_wrongly(comm, wrong, routing):
    error = error_of(xccl.DisaggregatedExperts, comm, 1, **{**SHAPE, **wrong}, routing=routing)
    comm.barrier()
    return error


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"num_experts": 0}, "num_experts=0: expected 1"),
        ({"hidden": 1.5}, "hidden=1.5: expected a whole number"),
        ({"max_tokens": 2**31 - 1}, "expected 1 to 16777216"),
        ({"topk": 2000}, "topk=2000: expected 1 to 1024"),
        ({"dtype": "int32"}, "dtype='int32'"),
        ({"dispatch_quant": "int4"}, "dispatch_quant='int4'"),
        ({"shared_experts": [6]}, "expert=6: expected 0 to 5"),
        ({"placement": [[0, 1, 2], [3, 4]]}, "expert 5"),
    ],
)
def test_what_cannot_be_is_refused_to_attention_and_experts_alike(threads, wrong, text, routing):
    for error in threads.run(make_wrongly, 3, wrong, routing):
        assert type(error) is xccl.InvalidArgument, error
        assert text in str(error)


# --- Death -----------------------------------------------------------------------------------------------------


def work_until_somebody_dies(comm, routing, victim):
    """Micro-batches for ever; the victim lets itself be killed in its part of the third."""
    with contextlib.ExitStack() as stack:
        de = stack.enter_context(xccl.DisaggregatedExperts(comm, ATTENTION, **SHAPE, routing=routing))

        def die(layer):
            if comm.rank == victim and layer == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        def compute(batch):
            die(batch.tag)
            return batch.x

        def attend():
            for layer in range(1000):
                de.a2e(*tokens(comm.rank), tag=layer)
                die(layer)
                de.e2a()

        error = error_of(de.serve, compute) if de.is_expert else error_of(attend)
        stack.pop_all()  # what remains is closed with the communicator
    return error


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("victim", [1, 2, 4], ids=["attention", "trampoline", "expert"])
def test_a_rank_that_is_killed_is_named_to_all_the_others(processes, routing, victim):
    outcomes = processes.outcomes(work_until_somebody_dies, ATTENTION + EXPERTS, routing, victim)
    for rank, outcome in enumerate(outcomes):
        if rank == victim:
            assert outcome.exitcode == -signal.SIGKILL
            continue
        assert outcome.fine, outcome.trace
        assert type(outcome.value) is xccl.PeerLost, outcome.value
        assert outcome.value.ranks == [victim]


# --- Leaving ---------------------------------------------------------------------------------------------------


def leave_without_the_end(comm, routing):
    with xccl.DisaggregatedExperts(comm, 1, **SHAPE, routing=routing) as de:
        return error_of(de.serve, lambda batch: batch.x) if de.is_expert else None


@pytest.mark.parametrize("routing", ROUTINGS)
def test_experts_are_told_of_attention_that_leaves_without_the_end(either_provider, routing):
    _, *errors = either_provider.run(leave_without_the_end, 3, routing)
    for error in errors:
        assert type(error) in (xccl.Closed, xccl.PeerFailed), error
        assert "rank 0 has closed" in str(error)


def be_interrupted(comm, routing, folder):
    with xccl.DisaggregatedExperts(comm, 1, **SHAPE, routing=routing) as de:
        if not de.is_expert:
            de.a2e(*tokens(0))
            de.e2a()
            mark(folder, "idle")
            return error_of(
                lambda: (de.a2e(*tokens(0)), wait_until(lambda: marked(folder, "over"), "over"), de.e2a())
            )

        def compute(batch):
            if batch.tag == 0 and marked(folder, "idle") and comm.rank == 1:
                mark(folder, "computing")
                signal.pause()  # a handler of Python's runs in the thread that computes, if it is the first
            return batch.x

        try:
            de.serve(compute)
        except KeyboardInterrupt:
            mark(folder, "over")
            return "interrupted"
        except xccl.Error as error:
            return error.with_traceback(None)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_ctrl_c_ends_the_loop_and_tells_the_others(processes, tmp_path, routing):
    def interrupt(running):
        wait_until(lambda: marked(tmp_path, "computing"), "an expert computes")
        wait_until(lambda: sleeps_steadily(running.pids[1]), "it sleeps")
        os.kill(running.pids[1], signal.SIGINT)

    attention, first, second = (
        outcome.value
        for outcome in processes.outcomes(be_interrupted, 3, routing, tmp_path, meanwhile=interrupt)
    )
    assert first == "interrupted"
    for error in (attention, second):
        assert type(error) is xccl.PeerFailed, error
        assert "KeyboardInterrupt" in str(error)


def interrupt_the_idle(comm, routing, folder):
    with xccl.DisaggregatedExperts(comm, 1, **SHAPE, routing=routing) as de:
        if not de.is_expert:
            wait_until(lambda: marked(folder, "over"), "the loop has ended")
            return None
        mark(folder, "idle")
        try:
            de.serve(print)
        except KeyboardInterrupt:
            mark(folder, "over")
            return "interrupted"


@pytest.mark.parametrize("routing", ROUTINGS)
def test_ctrl_c_ends_a_loop_that_waits_for_work(processes, tmp_path, routing):
    def interrupt(running):
        wait_until(lambda: marked(tmp_path, "idle"), "the expert is about to wait")
        wait_until(lambda: sleeps_steadily(running.pids[1]), "it sleeps in its wait")
        os.kill(running.pids[1], signal.SIGINT)

    outcomes = processes.outcomes(interrupt_the_idle, 2, routing, tmp_path, meanwhile=interrupt)
    assert outcomes[1].value == "interrupted", outcomes[1].trace


def answer_late(comm, routing, folder):
    """Attention gives up waiting. By trampoline it may wait again; direct, it has taken part in a collective."""
    with xccl.DisaggregatedExperts(comm, 1, **SHAPE, routing=routing, micro_batches=1) as de:
        if de.is_expert:

            def compute(batch):
                wait_until(lambda: marked(folder, "late"), "attention has given up")
                return batch.x

            return error_of(de.serve, compute) if routing == "direct" else de.serve(compute)
        de.a2e(*tokens(0))
        error = error_of(de.e2a, timeout=0.2)
        mark(folder, "late")
        if routing == "trampoline":
            de.e2a()
            de.end()
        return error


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_late_expert_is_named(either_provider, tmp_path, routing):
    error, *experts = either_provider.run(answer_late, 3, routing, tmp_path)
    assert type(error) is xccl.Timeout
    assert 1 in error.ranks
    for expert in experts:
        assert expert == 1 if routing == "trampoline" else type(expert) is xccl.PeerFailed
