"""xccl.eplb: where experts go. No ranks are started: it is arithmetic."""

from __future__ import annotations

import itertools
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ranks import error_of

import xccl
from xccl import eplb
from xccl.eplb.greedy import place, replicas_by_windows

EMPTY = eplb.EMPTY


def zipf_trace(windows, experts=64, tokens=4096, seed=0):
    """Tokens of each expert, (windows, experts): popular by Zipf's law with s = 1.0, in an order drawn once."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, experts + 1)
    return rng.multinomial(tokens, rng.permutation(popularity / popularity.sum()), windows)


def hottest(load, placement):
    """The load of each window's hottest rank, added up."""
    return np.atleast_2d(eplb.rank_loads(load, placement)).max(1).sum()


def by_eplb(load, slots, ranks):
    """What DeepSeek's algorithm makes of the totals of a load."""
    total = np.atleast_2d(load).sum(0)
    phy2log, _, _ = eplb.rebalance_experts(total[None], slots, 1, 1, ranks)
    return phy2log[0].reshape(ranks, -1).tolist()


BLOCKS = [
    [*range(8 * rank, 8 * rank + 8), EMPTY] for rank in range(8)
]  # 64 experts, a free slot on each rank


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("windows", [1, 20])
def test_the_hottest_rank_of_a_zipf_trace_is_near_the_mean_and_not_hotter_than_by_eplb(windows, seed):
    trace = zipf_trace(windows, seed=seed)
    for plan in (eplb.rebalance(trace, slots=[9] * 8), eplb.rebalance(trace, current=BLOCKS)):
        assert plan.hottest == pytest.approx(hottest(trace, plan.placement), rel=1e-9)
        assert plan.mean == pytest.approx(trace.sum() / 8)
        assert plan.hottest <= 1.15 * plan.mean
        assert plan.hottest <= hottest(trace, by_eplb(trace, 72, 8))
    total = trace.sum(0)  # also by the measure of EPLB, which knows no windows
    assert eplb.rebalance(total, slots=[9] * 8).hottest <= hottest(total, by_eplb(total, 72, 8))


def test_without_replicas_that_trace_is_far_from_even():
    trace = zipf_trace(1)
    assert eplb.rebalance(trace, slots=[8] * 8).imbalance > 1.6  # one expert alone is that hot
    assert hottest(trace, BLOCKS) > 2 * trace.sum() / 8


@pytest.mark.parametrize("windows", [1, 5])
def test_a_larger_budget_is_never_worse_and_never_exceeded(windows):
    trace = zipf_trace(windows)
    plans = [eplb.rebalance(trace, current=BLOCKS, budget=budget) for budget in [*range(20), 40, 72, None]]
    assert all(plan.hottest_before == pytest.approx(hottest(trace, BLOCKS)) for plan in plans)
    assert plans[0].placement == BLOCKS
    assert plans[0].hottest == plans[0].hottest_before
    assert all(len(plan.moves) <= budget for budget, plan in enumerate(plans[:20]))
    assert all(after.hottest <= before.hottest for before, after in itertools.pairwise(plans))
    assert plans[1].hottest < 0.8 * plans[0].hottest  # one move is worth it
    assert plans[8].imbalance < 1.15


@st.composite
def situations(draw):
    """A load; ranks with slots, enough of them on living ranks; and perhaps a placement that is there already."""
    experts = draw(st.integers(1, 8), "experts")
    ranks = draw(st.integers(1, 5), "ranks")
    shape = draw(st.sampled_from([(experts,), (1, experts), (3, experts)]), "shape")
    load = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 20)), "load")
    slots = draw(st.lists(st.integers(0, 5), min_size=ranks, max_size=ranks), "slots")
    dead = draw(st.sets(st.integers(0, ranks - 1), max_size=ranks - 1), "dead")
    living = [rank for rank in range(ranks) if rank not in dead]
    slots[living[0]] += max(0, experts - sum(slots[rank] for rank in living))
    current = [draw(st.lists(st.integers(EMPTY, experts - 1), min_size=n, max_size=n)) for n in slots]
    return load, slots, draw(st.sampled_from([None, current]), "current"), sorted(dead)


def check_plan(plan, load, slots, current, dead):
    """Everything that is promised of any plan."""
    experts = np.shape(load)[-1]
    hosted = [[expert for expert in row if expert != EMPTY] for row in plan.placement]
    assert [len(row) for row in plan.placement] == slots
    assert {expert for row in hosted for expert in row} == set(range(experts))
    assert all(len(set(row)) == len(row) for row in hosted)
    assert all(not hosted[rank] for rank in dead)
    assert plan.hottest == pytest.approx(hottest(load, plan.placement))

    # Carrying out the moves, all of which read what was there before, leads to the placement.
    before = current or [[EMPTY] * count for count in slots]
    found = [
        [expert if expert in plan.placement[r] else EMPTY for expert in row] for r, row in enumerate(before)
    ]
    for expert, from_rank, from_slot, to_rank, to_slot in plan.moves:
        has_it = [r for r, row in enumerate(before) if expert in row and r not in dead]
        assert (from_rank in has_it) if has_it else (from_rank == from_slot == -1)
        assert not has_it or before[from_rank][from_slot] == expert
        assert expert not in before[to_rank] or to_rank in dead
        found[to_rank][to_slot] = expert
    for rank, row in enumerate(plan.placement):
        assert rank in dead or all(
            found[rank][slot] == expert for slot, expert in enumerate(row) if expert != EMPTY
        )


@hypothesis.given(situations())
@hypothesis.settings(max_examples=200)
def test_any_plan_keeps_its_promises(situation):
    load, slots, current, dead = situation
    given = {"slots": slots} if current is None else {"current": current}
    plan = eplb.rebalance(load, **given, dead_ranks=dead)
    check_plan(plan, load, slots, current, dead)
    assert plan == eplb.rebalance(load, **given, dead_ranks=dead)
    living = [rank for rank in range(len(slots)) if slots[rank] and rank not in dead]
    if len({slots[rank] for rank in living}) == 1:
        theirs = by_eplb(load, sum(slots[rank] for rank in living), len(living))
        if all(len(set(row)) == len(row) for row in theirs):  # else it puts two replicas on one rank
            assert plan.hottest <= hottest(load, theirs) * (1 + 1e-9)


@hypothesis.given(situations())
@hypothesis.settings(max_examples=150)
def test_any_budget_is_kept_and_more_of_it_never_hurts(situation):
    load, slots, current, dead = situation
    hypothesis.assume(current is not None)
    there = {expert for rank, row in enumerate(current) if rank not in dead for expert in row} - {EMPTY}
    lost = np.shape(load)[-1] - len(there)
    if lost:
        with pytest.raises(xccl.InvalidArgument, match=f"{lost} experts are on no living rank"):
            eplb.rebalance(load, current=current, budget=lost - 1, dead_ranks=dead)
    before = np.inf
    for budget in [*range(lost, lost + 6), None]:
        plan = eplb.rebalance(load, current=current, budget=budget, dead_ranks=dead)
        check_plan(plan, load, slots, current, dead)
        assert budget is None or len(plan.moves) <= budget
        assert plan.hottest <= before
        before = plan.hottest
        if plan.hottest_before is not None and not dead:
            assert plan.hottest <= plan.hottest_before * (1 + 1e-9)


@hypothesis.given(hnp.arrays(np.float64, (4, 5), elements=st.floats(0, 100)), st.integers(0, 8))
def test_replicas_are_those_of_the_papers_greedy_rule(load, extra):
    def total(replicas):
        return (load / replicas).max(1).sum()

    replicas = np.ones(5, np.int64)
    for count in range(1, extra + 1):
        best = min(total(replicas + np.eye(5, dtype=np.int64)[expert]) for expert in range(5))
        replicas = replicas_by_windows(load, count, most=99)
        assert replicas.sum() == 5 + count
        assert total(replicas) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_places_are_filled_heaviest_first_on_the_least_loaded_rank():
    load = np.array([[40.0, 30, 20, 12, 6]])
    hosts = place(load, np.array([2, 1, 1, 1, 1]), np.array([2, 3, 1]))
    # 30 to rank 0, 20 and 20 of the first to ranks 1 and 2, the other 20 to rank 1; the last two where there is room.
    assert [np.flatnonzero(column).tolist() for column in hosts.T] == [[1, 3], [0, 2, 4], [0]]


# The example that deepseek-ai/EPLB publishes: the experts on each GPU, for two layers.
PUBLISHED_WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PUBLISHED_GPUS = [
    [[5, 6], [5, 7], [4, 8], [3, 4], [9, 10], [2, 10], [0, 1], [1, 11]],
    [[7, 10], [6, 8], [6, 11], [8, 9], [2, 4], [1, 5], [0, 5], [1, 3]],
]


def test_rebalance_experts_gives_the_published_example():
    phy2log, log2phy, logcnt = eplb.rebalance_experts(PUBLISHED_WEIGHT, 16, 4, 2, 8)
    assert np.sort(phy2log.reshape(2, 8, 2), -1).tolist() == PUBLISHED_GPUS
    assert (phy2log.shape, log2phy.shape, logcnt.shape) == ((2, 16), (2, 12, 2), (2, 12))
    assert {array.dtype for array in (phy2log, log2phy, logcnt)} == {np.dtype(np.int64)}


@hypothesis.given(st.data())
def test_rebalance_experts_keeps_its_shape_for_any_numbers(data):
    nodes, gpus_each = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    groups, members = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    gpus, experts = nodes * gpus_each, groups * members
    each = -(-experts // gpus) + data.draw(st.integers(0, 2))
    weight = data.draw(hnp.arrays(np.int64, (2, experts), elements=st.integers(0, 50)))
    phy2log, log2phy, logcnt = eplb.rebalance_experts(weight, each * gpus, groups, nodes, gpus)
    for layer in range(2):
        np.testing.assert_array_equal(logcnt[layer], np.bincount(phy2log[layer], minlength=experts))
        assert logcnt[layer].min() >= 1
        for expert in range(experts):
            slots = np.flatnonzero(phy2log[layer] == expert).tolist()
            padding = [-1] * (log2phy.shape[2] - len(slots))
            assert log2phy[layer, expert].tolist() == slots + padding
        if groups % nodes == 0:  # all experts of a group are on one node
            node = {(e // members, slot // (each * gpus_each)) for slot, e in enumerate(phy2log[layer])}
            assert len(node) == groups


def test_rank_loads_share_an_expert_among_its_replicas():
    placement = [[0, 1], [1, EMPTY], [], [2, 1, 1]]
    np.testing.assert_array_equal(eplb.rank_loads([10, 8, 3], placement), [12, 2, 0, 7])
    np.testing.assert_array_equal(
        eplb.rank_loads([[10, 8, 3], [0, 4, 0]], placement), [[12, 2, 0, 7], [1, 1, 0, 2]]
    )


def test_what_stays_on_its_rank_stays_in_its_slot():
    current = [[EMPTY, 3, 0], [1, EMPTY, 2]]
    plan = eplb.rebalance([5, 5, 5, 5], current=current, budget=0)
    assert plan.placement == current
    plan = eplb.rebalance([0, 0, 0, 30], current=current)
    assert plan.placement[0][1] == 3
    assert plan.moves == (eplb.Move(expert=3, from_rank=0, from_slot=1, to_rank=1, to_slot=1),)


def test_a_rank_that_died_is_emptied_and_its_experts_come_from_their_replicas():
    current = [[0, 1], [1, 2], [0, 2], [EMPTY, EMPTY]]
    plan = eplb.rebalance([6, 6, 6], current=current, dead_ranks=[0])
    assert plan.placement[0] == [EMPTY, EMPTY]
    assert all(move.from_rank in (1, 2) for move in plan.moves)
    assert plan.imbalance == 1.0
    lost = eplb.rebalance([6, 6, 6], current=[[0, 1], [2, EMPTY], [EMPTY, 0]], dead_ranks=[0], budget=1)
    assert lost.hottest_before is None
    assert [(move.expert, move.from_rank, move.from_slot) for move in lost.moves] == [(1, -1, -1)]


WRONG = {
    "neither slots nor current": (lambda: eplb.rebalance([1, 2]), "either slots= or current="),
    "both": (lambda: eplb.rebalance([1, 2], [1, 1], current=[[0], [1]]), "either slots= or current="),
    "budget of nothing": (lambda: eplb.rebalance([1, 2], [2], budget=1), "budget="),
    "negative budget": (lambda: eplb.rebalance([1, 2], current=[[0, 1]], budget=-1), "budget=-1"),
    "too few slots": (lambda: eplb.rebalance([1, 2, 3], [1, 1]), "2 slots"),
    "too few living slots": (lambda: eplb.rebalance([1, 2], [1, 1], dead_ranks=[1]), "1 slots"),
    "no such rank": (lambda: eplb.rebalance([1], [1], dead_ranks=[1]), "dead_ranks=1"),
    "no such expert": (lambda: eplb.rebalance([1], current=[[1]]), "rank 0 has expert 1 in slot 0"),
    "a part of an expert": (lambda: eplb.rebalance([1, 1], current=[[0.5, 1]]), "current of rank 0=0.5"),
    "negative load": (lambda: eplb.rebalance([1, -1], [2]), "negative"),
    "load that is no number": (lambda: eplb.rebalance([1, np.nan], [2]), "not finite"),
    "words": (lambda: eplb.rebalance(["many", "few"], [2]), "load"),
    "too many dimensions": (lambda: eplb.rebalance([[[1]]], [2]), r"shape \(1, 1, 1\)"),
    "an expert that there is not": (lambda: eplb.rank_loads([1, 1], [[0, 1], [2]]), "rank 1 has expert 2"),
    "an expert that is nowhere": (lambda: eplb.rank_loads([1, 1], [[0]]), "expert 1 is on no rank"),
    "GPUs that do not divide": (
        lambda: eplb.rebalance_experts([[1, 1]], 3, 1, 1, 2),
        "num_gpus=2 does not divide",
    ),
    "nodes that do not divide": (
        lambda: eplb.rebalance_experts([[1, 1]], 3, 1, 2, 3),
        "num_nodes=2 does not",
    ),
    "groups that do not divide": (
        lambda: eplb.rebalance_experts([[1, 1]], 2, 3, 1, 1),
        "num_groups=3 does not",
    ),
    "too few replicas": (lambda: eplb.rebalance_experts([[1, 1]], 1, 1, 1, 1), "num_replicas=1"),
    "no layers": (lambda: eplb.rebalance_experts([1, 1], 2, 1, 1, 1), r"\(layers, experts\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    call, text = WRONG[case]
    error = error_of(call)
    assert type(error) is xccl.InvalidArgument
    assert re.search(text, str(error)), error
