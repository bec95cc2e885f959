"""One rank is slow, in the middle of a call too, while the others run ahead as far as they may: rows stay right.

A process can be stopped and continued from outside at any instruction; a thread can only sleep between its calls
(the native tests stop threads inside them). Here slowness is the subject, so these tests do sleep.
"""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest
from test_dispatch_combine import shape_arguments
from truth import Shape, combined, dispatched, random_batches, same_bits, scale

import xccl

ROUNDS = 300


class Stumbling:
    """Sleeps now and then, by a sequence of its own."""

    def __init__(self, seed, longest):
        self.random = random.Random(seed)
        self.longest = longest

    def __call__(self):
        if self.random.random() < 0.05:
            time.sleep(self.random.random() * self.longest)


def no_tokens_on(ranks, batches):
    """The same batches, but these ranks have nothing to dispatch."""
    return [
        type(b)(b.x[:0], b.topk_idx[:0], b.topk_weights[:0]) if rank in ranks else b
        for rank, b in enumerate(batches)
    ]


def round_trip(ep, shape, batches, rank, number, pause):
    """One round, by another of the possible ways each time, and compared with the truth."""
    mine = batches[rank]
    x = mine.x
    if number % 3 == 0:
        x = ep.input_buffer(len(mine.x))
        x[:] = mine.x
    pause()
    d = ep.dispatch(x, mine.topk_idx, mine.topk_weights)
    same_bits(d.x, dispatched(rank, batches, shape).x, f"rows of round {number}")
    out = (np.empty_like(d.x), d.output_buffer(), d.x)[number % 3]
    for i, expert in enumerate(ep.local_experts):
        out[d.rows_of(i)] = scale(expert, d.expert(i))
    pause()
    y = ep.combine(out, d)
    same_bits(y, combined(mine, shape, scale), f"sums of round {number}")
    d.release()


def many_rounds(comm, shape, rounds, longest):
    pause = Stumbling(comm.rank, longest)
    with xccl.ExpertParallel(comm, *shape_arguments(shape)) as ep:
        for number in range(rounds):
            batches = random_batches((1, number), shape, comm.size)
            round_trip(ep, shape, no_tokens_on({number % 7}, batches), comm.rank, number, pause)


def many_rounds_with_two_objects(comm, rounds, longest):
    shapes = [Shape(4, 20, 4, 2), Shape(3, 9, 6, 1, "float32")]
    pause = Stumbling(comm.rank, longest)
    eps = [xccl.ExpertParallel(comm, *shape_arguments(shape)) for shape in shapes]
    for number in range(rounds):
        for which, shape in enumerate(shapes):
            batches = no_tokens_on(
                {(number + which) % 4}, random_batches((2, number, which), shape, comm.size)
            )
            round_trip(eps[which], shape, batches, comm.rank, number, pause)
    for ep in eps:
        ep.close()


def stop_and_continue(seed):
    """Makes a `meanwhile` that stops one rank's process after another for a moment, wherever it just is."""
    order = random.Random(seed)

    def disturb(running):
        while running.still_going():
            victim = order.choice(running.pids)
            os.kill(victim, signal.SIGSTOP)
            try:
                time.sleep(order.uniform(0.0005, 0.012))
            finally:
                os.kill(victim, signal.SIGCONT)
            time.sleep(order.uniform(0.0, 0.002))

    return disturb


SHAPE = Shape(num_experts=5, hidden=30, max_tokens=4, topk=2)


def test_ranks_that_sleep_between_calls_do_not_spoil_rows(ranks):
    ranks.run(many_rounds, 3, SHAPE, ROUNDS // 2, 0.01)


@pytest.mark.parametrize("direct", ["1", "0"])
def test_ranks_that_are_stopped_anywhere_do_not_spoil_rows(processes, direct):
    processes = processes.variables(XCCL_DIRECT=direct)
    processes.run(many_rounds, 4, SHAPE, ROUNDS, 0.002, meanwhile=stop_and_continue(seed=1))


@pytest.mark.parametrize("direct", ["1", "0"])
def test_ranks_that_are_stopped_anywhere_with_two_objects_and_ranks_without_tokens(processes, direct):
    processes = processes.variables(XCCL_DIRECT=direct)
    processes.run(many_rounds_with_two_objects, 3, ROUNDS, 0.002, meanwhile=stop_and_continue(seed=2))


def overwrite_buffers(comm, shape, rounds):
    """Writes into every buffer as early as the documentation allows: who still reads it would see that."""
    pause = Stumbling(comm.rank, 0.003)
    with xccl.ExpertParallel(comm, *shape_arguments(shape)) as ep:
        for number in range(rounds):
            batches = random_batches((3, number), shape, comm.size)
            mine = batches[comm.rank]
            x = ep.input_buffer(shape.max_tokens)  # the one used two rounds ago
            x[:] = np.nan
            x[: len(mine.x)] = mine.x
            pause()
            with ep.dispatch(x[: len(mine.x)], mine.topk_idx, mine.topk_weights) as d:
                same_bits(d.x, dispatched(comm.rank, batches, shape).x, f"rows of round {number}")
                for turn in range(2):
                    out = d.output_buffer()  # waits until the combine of the turn before has been read
                    out[:] = np.nan
                    out[:] = d.x * (turn + 1)
                    y = ep.combine(out, d)
                    same_bits(
                        y, combined(mine, shape, lambda _, row, k=turn + 1: row * k), f"sums of {number}"
                    )
                rows = np.array(d.x)
                y = ep.combine(rows, d)
                rows[:] = np.nan  # private memory is free again when combine returns
                same_bits(y, combined(mine, shape), f"sums of {number}")


@pytest.mark.parametrize("direct", ["1", "0"])
def test_buffers_may_be_written_again_as_soon_as_they_are_given(processes, direct):
    processes = processes.variables(XCCL_DIRECT=direct)
    processes.run(overwrite_buffers, 3, SHAPE, ROUNDS // 2, meanwhile=stop_and_continue(seed=3))
