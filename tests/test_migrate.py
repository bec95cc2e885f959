"""xccl.eplb.migrate: experts' weights move while dispatch and combine go on, and every sum stays right."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from ranks import error_of
from truth import Shape, combined, random_batch, same_bits, scale

import xccl
from xccl import eplb

SHAPE = Shape(num_experts=12, hidden=24, max_tokens=20, topk=3)
EMPTY = eplb.EMPTY
BLOCKS = [[0, 1, 2, 3, EMPTY], [4, 5, 6, 7], [8, 9, 10, 11, EMPTY]]


def weights_of(placement, rank):
    """Two tensors of each slot: large ones that name the expert everywhere, and one number by which it multiplies."""
    experts = np.array(placement[rank], np.float32)
    large = np.repeat(experts, 1001 * 3).reshape(len(experts), 1001, 3).astype(ml_dtypes.bfloat16)
    return [large, (experts + 0.5).astype(np.float32)]


def skewed_batch(rng):
    """Tokens that like low experts."""
    batch = random_batch(rng, SHAPE, SHAPE.max_tokens)
    popularity = 1 / np.arange(1, SHAPE.num_experts + 1)
    chosen = rng.choice(SHAPE.num_experts, batch.topk_idx.shape, p=popularity / popularity.sum())
    return replace(batch, topk_idx=chosen)


def serve(ep, weights, batch):
    """One layer: the experts are whatever lies in the slots. The sums must be those of the truth."""
    with ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights) as d:
        for slot in range(len(ep.local_experts)):
            rows = d.expert(slot)
            rows[:] = (rows.astype(np.float32) * weights[1][slot]).astype(rows.dtype)
        same_bits(np.array(ep.combine(d.x, d)), combined(batch, SHAPE, scale))
        return d.num_rows


def rebalance_while_serving(comm, step_bytes):
    """Count, decide, copy, switch. Returns what there is to compare of before and after."""
    rng = np.random.default_rng(comm.rank)
    weights = weights_of(BLOCKS, comm.rank)
    shape = (SHAPE.num_experts, SHAPE.hidden, SHAPE.max_tokens, SHAPE.topk)
    with comm.split(0) as aside, xccl.ExpertParallel(comm, *shape, placement=BLOCKS) as ep:
        before = sum(serve(ep, weights, skewed_batch(rng)) for _ in range(10))
        plan = eplb.rebalance(comm.all_reduce(ep.expert_load(reset=True)), current=ep.placement, budget=5)
        migration = eplb.migrate(aside, weights, plan.moves, step_bytes=step_bytes)
        steps, phases = 0, [migration.phase]
        while not migration.step():
            steps += 1
            phases.append(migration.phase)
            assert not migration.test()
            serve(ep, weights, skewed_batch(rng))
        phases.append(migration.phase)
        untouched = all(map(np.array_equal, weights, weights_of(BLOCKS, comm.rank)))
        migration.install()
        phases.append(migration.phase)
        ep.set_placement(plan.placement)
        after = sum(serve(ep, weights, skewed_batch(rng)) for _ in range(10))
    held = [slot for slot, expert in enumerate(plan.placement[comm.rank]) if expert != EMPTY]
    arrived = [
        np.array_equal(found[held], expected[held])
        for found, expected in zip(weights, weights_of(plan.placement, comm.rank), strict=True)
    ]
    return plan, steps, phases, untouched, arrived, before, after


@pytest.mark.parametrize("step_bytes", [1000, 1 << 20])
def test_experts_move_while_serving_goes_on_and_the_load_is_more_even_after(ranks, step_bytes):
    found = ranks.run(rebalance_while_serving, 3, step_bytes)
    plans, steps, phases, untouched, arrived, before, after = zip(*found, strict=True)
    assert plans[0] == plans[1] == plans[2]  # every rank decides by itself
    assert 0 < len(plans[0].moves) <= 5
    assert len(set(steps)) == 1  # all are ready in the same step
    assert step_bytes > 1000 or steps[0] > 7  # a move is seven pieces
    assert all(untouched)
    assert arrived == ([True, True],) * 3
    for one in phases:
        told = list(dict.fromkeys(one))
        assert [told[0], *told[-2:]] == ["copying", "ready", "installed"]
        assert set(told) <= {"copying", "agreeing", "ready", "installed"}
    assert plans[0].hottest < 0.9 * plans[0].hottest_before
    assert max(after) / sum(after) < 0.95 * max(before) / sum(before)


def move_around(comm, moves):
    """Moves without any serving in between but barriers."""
    weights = np.arange(6, dtype=np.int64).reshape(2, 3) + 100 * comm.rank
    migration = eplb.migrate(comm, weights, moves)
    while not migration.step():
        comm.barrier()
    assert migration.step()
    migration.install()
    migration.install()
    return weights


def test_a_swap_a_cycle_and_a_move_within_a_rank(ranks):
    moves = [
        eplb.Move(7, 0, 0, 1, 1),
        eplb.Move(8, 1, 1, 0, 0),
        eplb.Move(9, 1, 0, 2, 0),
        eplb.Move(6, 2, 0, 2, 1),
    ]
    found = ranks.run(move_around, 3, moves)
    assert [rows[:, 0].tolist() for rows in found] == [[103, 3], [100, 0], [100, 200]]
    assert [rows.tolist() for rows in ranks.run(move_around, 2, [])] == [
        [[0, 1, 2], [3, 4, 5]],
        [[100, 101, 102], [103, 104, 105]],
    ]


def mean_different_things(comm):
    """Ranks that do not agree are told, and may try again."""
    weights = np.zeros((2, 3 + comm.rank), np.float32)
    one = [eplb.Move(0, 0, 0, 1, 0)]
    errors = [
        error_of(eplb.migrate, comm, weights, one),
        error_of(eplb.migrate, comm, weights[:, :3].copy(), one if comm.rank else []),
        error_of(eplb.migrate, comm, weights[:, :3].copy(), one, step_bytes=1 + comm.rank),
    ]
    return errors, move_around(comm, one)


def test_ranks_that_mean_different_migrations_are_told(either_provider):
    for rank, (errors, _) in enumerate(either_provider.run(mean_different_things, 2)):
        for error in errors:
            assert type(error) is xccl.Mismatch
            assert error.ranks == [1 - rank]


def step_apart(comm):
    """Rank 1 takes five steps where rank 0 takes one; then both go on alike. What each gets in the end."""
    migration = eplb.migrate(comm, np.zeros((1, 1), np.float32), [])
    ends = []
    for number in range(5):
        for _ in range(5 if number == 0 and comm.rank == 1 else 1):
            try:
                ends.append(migration.step())
            except xccl.Mismatch as error:
                ends.append(error)
        comm.barrier()
    return ends


def test_ranks_whose_steps_are_not_the_same_are_told(either_provider):
    coordinator, other = either_provider.run(step_apart, 2)
    assert coordinator[-1] is True
    mismatches = [end for end in other if isinstance(end, xccl.Mismatch)]
    assert mismatches
    assert "between two steps all ranks must take part" in str(mismatches[0])
    assert True not in other


def ask_wrongly(comm):
    """Errors of wrong arguments, all found before anything is sent."""
    weights = np.zeros((2, 3), np.float32)
    locked = weights.copy()
    locked.flags.writeable = False
    calls = {
        "comes from no rank": (weights, [(0, -1, -1, 0, 0)]),
        "to rank 5: expected 0 to 1": (weights, [(0, 0, 0, 5, 0)]),
        "from rank -2": (weights, [(0, -2, 0, 0, 0)]),
        "slot 2 of rank": (weights, [(0, 0, 2, 1, 2)]),
        "two experts go to the same slot": (weights, [(0, 0, 0, 1, 1), (1, 0, 1, 1, 1)]),
        "writable": (locked, []),
        "C-contiguous": (weights.T, []),
        "as many in each": ([weights, weights[:1]], []),
        "weights is a int": (5, []),
        "moves=1.5": (weights, [(0, 1.5, 0, 1, 1)]),
        "step_bytes=0": (weights, [], 0),
    }
    found = {}
    for text, (given, moves, *step) in calls.items():
        options = {"step_bytes": step[0]} if step else {}
        found[text] = error_of(eplb.migrate, comm, given, moves, **options)
    migration = eplb.migrate(comm, weights, [eplb.Move(0, 0, 0, 1, 1)])
    found["is not ready"] = error_of(migration.install)
    while not migration.step():
        comm.barrier()
    return found


def test_wrong_arguments_are_named(either_provider):
    for found in either_provider.run(ask_wrongly, 2):
        for text, error in found.items():
            assert type(error) is xccl.InvalidArgument, text
            assert text in str(error)
