"""Experts placed freely: replicas, empty slots, ranks without any, shared ones; placements that change; their load."""

from __future__ import annotations

import itertools
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import test_quantisation as quantisation
from hypothesis import strategies as st
from ranks import error_of
from test_dispatch_combine import shape_arguments
from truth import (
    DTYPES,
    Shape,
    combined,
    dispatched,
    random_batch,
    random_batches,
    same_bits,
    scale,
    with_shared,
)

import xccl

SMALL = Shape(num_experts=5, hidden=17, max_tokens=7, topk=3)
EMPTY = xccl.eplb.EMPTY
REPLICATED = [[0, 1, 4], [EMPTY, 2, 0, 3], [0, 4]]  # of SMALL, on three ranks


def one_round(ep, batch):
    """Dispatch, the experts' work, combine: everything that came, and the sums."""
    with ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights) as d:
        results = np.empty((d.num_rows, ep.hidden), d.x.dtype)
        for i, expert in enumerate(ep.local_experts):
            results[d.rows_of(i)] = scale(expert, d.expert(i))
        y = np.array(ep.combine(results, d))
        return {
            "x": np.array(d.x),
            "index": np.array(d.index),
            "counts": d.counts,
            "src_rank": d.src_rank,
            "src_token": d.src_token,
            "weights": d.weights,
            "y": y,
        }


def rounds_by_placement(comm, shape, shared, placements, rounds):
    """A round under each placement, the first of which the object is made with."""
    ep = xccl.ExpertParallel(
        comm,
        *shape_arguments(shape),
        layout=shape.layout,
        placement=placements[0],
        shared_experts=shared,
    )
    found = []
    for placement, batches in zip(placements, rounds, strict=True):
        if placement is not placements[0]:
            ep.set_placement(placement)
        if placement is not None:
            assert ep.placement == placement
            assert ep.local_experts == placement[comm.rank]
        found.append(one_round(ep, batches[comm.rank]))
    return found, ep.expert_load()


def check(ranks, size, shape, placements, rounds, shared=()):
    """Runs the rounds, and compares what every rank got, and counted, with the truth."""
    found = ranks.run(rounds_by_placement, size, shape, list(shared), placements, rounds)
    for number, (placement, batches) in enumerate(zip(placements, rounds, strict=True)):
        for rank in range(size):
            got = found[rank][0][number]
            expected = dispatched(rank, batches, shape, placement, shared)
            where = f"round {number}, rank {rank}"
            for name in ("counts", "src_rank", "src_token", "index"):
                np.testing.assert_array_equal(got[name], getattr(expected, name), where, strict=True)
            same_bits(got["weights"], expected.weights, where)
            same_bits(got["x"], expected.x, where)
            extended = replace(shape, topk=shape.topk + len(shared))
            same_bits(got["y"], combined(with_shared(batches[rank], shared), extended, scale), where)
    for rank in range(size):
        named = [with_shared(batches[rank], shared).topk_idx.ravel() for batches in rounds]
        load = np.bincount(np.concatenate(named) + 1, minlength=shape.num_experts + 1)[1:]
        np.testing.assert_array_equal(found[rank][1], load.astype(np.int64), strict=True)


@st.composite
def placed_rounds(draw, hidden=range(1, 10), quants=((None, None),)):
    """A shape, placements with the same slots, shared experts, and a batch per rank for each placement."""
    dispatch_quant, combine_quant = draw(st.sampled_from(quants), "quantisation")
    size = draw(st.sampled_from([1, 2, 3, 4]), "ranks")
    shape = Shape(
        num_experts=draw(st.integers(1, 6), "experts"),
        hidden=draw(st.sampled_from(hidden), "hidden"),
        max_tokens=draw(st.integers(1, 7), "max_tokens"),
        topk=draw(st.integers(1, 4), "topk"),
        dtype=draw(st.sampled_from(list(DTYPES)), "dtype"),
        layout=draw(st.sampled_from(["expert", "token"]), "layout"),
        dispatch_quant=dispatch_quant,
        combine_quant=combine_quant,
    )
    shared = draw(st.lists(st.integers(0, shape.num_experts - 1), max_size=2, unique=True), "shared")
    slots = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size), "slots")
    slots[-1] += max(0, shape.num_experts - sum(slots))
    placements = []
    for _ in range(draw(st.integers(1, 3))):
        more = draw(
            st.lists(st.integers(EMPTY, shape.num_experts - 1), min_size=sum(slots), max_size=sum(slots))
        )
        held = draw(st.permutations([*range(shape.num_experts), *more[shape.num_experts :]]))
        cuts = np.cumsum([0, *slots])
        placements.append([held[a:b] for a, b in itertools.pairwise(cuts)])
    rounds = [random_batches(draw(st.integers(0, 2**32)), shape, size) for _ in placements]
    return size, shape, placements, rounds, shared


@hypothesis.given(placed_rounds())
@hypothesis.settings(max_examples=40)
def test_any_placement_gives_the_rows_and_sums_of_the_truth(ranks, job):
    size, shape, placements, rounds, shared = job
    check(ranks, size, shape, placements, rounds, shared)


def quantised_rounds(comm, shape, shared, placements, rounds):
    """Under each placement a round of quantised rows, and another with the same routing."""
    found = []
    with quantisation.open_ep(comm, shape, placement=placements[0], shared_experts=shared) as ep:
        for number, (placement, batches) in enumerate(zip(placements, rounds, strict=True)):
            if number > 0:
                ep.set_placement(placement)
            *fresh, routing = quantisation.one_round(ep, batches[comm.rank], shape)
            *again, _ = quantisation.one_round(ep, batches[comm.rank], shape, routing)
            found.append((fresh, again))
    return found


@hypothesis.given(placed_rounds(hidden=[1, 2, 9, 127, 129, 300], quants=quantisation.QUANTS))
@hypothesis.settings(max_examples=30)
def test_quantised_rows_go_with_any_placement_and_shared_experts(ranks, job):
    size, shape, placements, rounds, shared = job
    found = ranks.run(quantised_rounds, size, shape, shared, placements, rounds)
    for number, (placement, batches) in enumerate(zip(placements, rounds, strict=True)):
        for kind in (0, 1):
            each = [of_rank[number][kind] for of_rank in found]
            quantisation.compare(each, shape, batches, placement, shared)


PLACEMENTS = {
    "unequal numbers": [[0], [1, 2, 3], [4]],
    "a rank without slots": [[0, 1, 2], [], [3, 4]],
    "a rank with empty slots only": [[0, 1, 2], [EMPTY, EMPTY], [3, 4]],
    "replicas": REPLICATED,
    "every expert everywhere": [list(range(5))] * 3,
    "two replicas on one rank": [[2, 2], [0, 1, 2], [3, 4, 2]],
    "backwards": [[4, 3], [2, 1], [0]],
}


@pytest.mark.parametrize("shared", [(), (4, 0)], ids=["", "shared"])
@pytest.mark.parametrize("layout", ["expert", "token"])
@pytest.mark.parametrize("case", PLACEMENTS)
def test_these_placements_are_normal(ranks, case, layout, shared):
    check(ranks, 3, replace(SMALL, layout=layout), [PLACEMENTS[case]], [random_batches(3, SMALL, 3)], shared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_placement_changes_a_bit_of_the_sums(ranks, dtype):
    shape = replace(SMALL, dtype=dtype, hidden=40)
    batches = random_batches(8, shape, 3)
    plain = ranks.run(rounds_by_placement, 3, shape, [], [None], [batches])
    moving = [
        REPLICATED,
        [[3, 2, 1], [0, 1, 4, EMPTY], [0, 4]],
        [[EMPTY] * 3, [0, 1, 2, 3], [4, 0]],
    ]
    placed = ranks.run(rounds_by_placement, 3, shape, [], moving, [batches] * 3)
    for rank in range(3):
        for number in range(3):
            same_bits(placed[rank][0][number]["y"], plain[rank][0][0]["y"], f"rank {rank}, {moving[number]}")


def combine_late(comm):
    """Results of one placement, combined under the next; their routing refused, unless nothing has changed."""
    batch = random_batch(np.random.default_rng(comm.rank), SMALL, 4)
    with xccl.ExpertParallel(comm, *shape_arguments(SMALL), placement=REPLICATED) as ep:
        d = ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
        out = d.output_buffer()
        for i, expert in enumerate(ep.local_experts):
            out[d.rows_of(i)] = scale(expert, d.expert(i))
        ep.set_placement(REPLICATED)
        ep.dispatch(batch.x, routing=d.routing).release()
        ep.set_placement([[4, 3, 2], [EMPTY, 2, 0, 1], [0, 1]])
        refused = error_of(ep.dispatch, batch.x, routing=d.routing)
        late = np.array(ep.combine(out, d))
        again = one_round(ep, batch)["y"]
    return refused, late, again, combined(batch, SMALL, scale)


def test_results_of_an_earlier_placement_are_combined_and_their_routing_is_refused(ranks):
    for refused, late, again, expected in ranks.run(combine_late, 3):
        assert type(refused) is xccl.InvalidArgument
        assert "before set_placement" in str(refused)
        same_bits(late, expected)
        same_bits(again, expected)


def share_the_load(comm, tokens):
    """All tokens to expert 0, which has three replicas; twice. Rows here, and where a token went each time."""
    with xccl.ExpertParallel(comm, 5, 1, tokens, 1, "float32", placement=REPLICATED) as ep:
        x = np.zeros((tokens, 1), np.float32)
        call = (x, np.zeros((tokens, 1), np.int64), np.ones((tokens, 1), np.float32))
        first, second = ep.dispatch(*call), ep.dispatch(*call)
        np.testing.assert_array_equal(first.src_rank, second.src_rank)
        np.testing.assert_array_equal(first.src_token, second.src_token)
        return first.num_rows


@pytest.mark.parametrize("tokens", [1, 30])
def test_replicas_share_the_tokens_evenly_and_a_token_goes_to_the_same_one_each_time(threads, tokens):
    assert threads.run(share_the_load, 3, tokens) == [tokens] * 3


def count_tokens(comm):
    """The load after some dispatches, its sum over ranks, and after a reset."""
    batch = random_batch(np.random.default_rng(comm.rank), SMALL, 5)
    with xccl.ExpertParallel(comm, *shape_arguments(SMALL), placement=REPLICATED) as ep:
        seen = [ep.expert_load()]
        for _ in range(3):
            d = ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
            d.release()
        ep.dispatch(batch.x, routing=d.routing).release()
        everybody = comm.all_reduce(ep.expert_load())
        seen += [ep.expert_load(), ep.expert_load(reset=True), ep.expert_load()]
        return seen, everybody, batch.topk_idx


def test_load_is_counted_until_reset_and_adds_up_over_ranks(either_provider):
    found = either_provider.run(count_tokens, 3)
    total = 0
    for (nothing, three, same, reset), _, topk_idx in found:
        once = np.bincount(topk_idx.ravel() + 1, minlength=6)[1:]
        assert nothing.dtype == np.int64
        assert not nothing.any()
        np.testing.assert_array_equal(three, 3 * once)
        np.testing.assert_array_equal(same, three)
        assert not reset.any()
        total = total + three
    for _, everybody, _ in found:
        np.testing.assert_array_equal(everybody, total)


def weigh_shared(comm, weights):
    """One token, one chosen expert and one shared, with these weights in dispatch or combine."""
    with xccl.ExpertParallel(comm, 2, 1, 1, 1, "float32", shared_experts=[1]) as ep:
        x, idx = np.full((1, 1), 3, np.float32), np.zeros((1, 1), np.int64)
        d = ep.dispatch(x, idx, weights)
        late = ep.dispatch(x, idx, np.zeros((1, 1), np.float32))
        return ep.combine(d.x, d).item(), ep.combine(late.x, late, weights=weights).item()


@pytest.mark.parametrize(("weights", "sum"), [([[2]], 9), ([[2, 0.5]], 7.5), ([[0, 0]], 0)])
def test_a_shared_expert_weighs_one_or_what_is_given(threads, weights, sum):
    for found in threads.run(weigh_shared, 2, np.array(weights, np.float32)):
        assert found == (sum, sum)


def disagree_at_once(comm):
    """Different placements, and different shared experts: errors, after which all is well."""
    mine = [[0, 1, 2], [3, 4]] if comm.rank == 0 else [[0, 1], [2, 3, 4]]
    errors = [
        error_of(xccl.ExpertParallel, comm, *shape_arguments(SMALL), placement=mine),
        error_of(xccl.ExpertParallel, comm, *shape_arguments(SMALL), shared_experts=[comm.rank]),
    ]
    return errors, rounds_by_placement(comm, SMALL, [], [None], [random_batches(1, SMALL, 2)])


def test_ranks_that_are_made_with_different_placements_are_told(either_provider):
    for rank, ((placement, shared), _) in enumerate(either_provider.run(disagree_at_once, 2)):
        for error, name in ((placement, "placement="), (shared, "shared_experts=")):
            assert type(error) is xccl.Mismatch
            assert name in str(error)
            assert error.ranks == [1 - rank]


def disagree_later(comm, other):
    """One rank sets another placement than the others, or does something else."""
    with xccl.ExpertParallel(comm, *shape_arguments(SMALL), placement=REPLICATED) as ep:
        if comm.rank != 1:
            return error_of(ep.set_placement, REPLICATED)
        batch = random_batch(np.random.default_rng(1), SMALL, 2)
        call = {
            "another placement": lambda: ep.set_placement([[4, 1, 0], *REPLICATED[1:]]),
            "a dispatch": lambda: ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights),
        }
        return error_of(call[other])


@pytest.mark.parametrize("other", ["another placement", "a dispatch"])
def test_ranks_that_set_different_placements_are_told(ranks, other):
    for rank, error in enumerate(ranks.run(disagree_later, 3, other)):
        assert type(error) is xccl.Mismatch
        assert "calls set_placement" in str(error)
        assert error.ranks == ([0, 2] if rank == 1 else [1])


WRONG = {
    "too few ranks": ({"placement": [[0, 1, 2, 3, 4]]}, "slots for 1 ranks: expected 2"),
    "an expert that is nowhere": ({"placement": [[0, 1], [2, 4]]}, "expert 3 is on no rank"),
    "an expert that there is not": ({"placement": [[0, 1, 2], [3, 4, 5]]}, "rank 1 has expert 5 in slot 2"),
    "a negative one": ({"placement": [[0, 1, 2, -2], [3, 4]]}, "rank 0 has expert -2 in slot 3"),
    "half an expert": ({"placement": [[0, 1, 2.5], [3, 4]]}, "placement of rank 0=2.5"),
    "no list": ({"placement": 5}, "placement=5"),
    "no list of lists": ({"placement": [1, 2]}, "placement of rank 0=1"),
    "a text": ({"placement": "01"}, "placement='01'"),
    "no such shared expert": ({"shared_experts": [5]}, "shared_experts: expert=5"),
    "a shared expert twice": ({"shared_experts": [1, 1]}, "names expert 1 twice"),
    "shared experts that are no list": ({"shared_experts": 1}, "shared_experts=1"),
}


def ask_wrongly(comm):
    """Errors of every wrong placement, then of set_placement; then a right one works."""
    made = {
        case: error_of(lambda changes=changes: xccl.ExpertParallel(comm, *shape_arguments(SMALL), **changes))
        for case, (changes, _) in WRONG.items()
    }
    with xccl.ExpertParallel(comm, *shape_arguments(SMALL), placement=[[0, 1, 2], [3, 4]]) as ep:
        later = [
            error_of(ep.set_placement, [[0, 1, 2], [3, 4, EMPTY]]),
            error_of(ep.set_placement, [[0, 1, 2], [3, 3]]),
            error_of(ep.set_placement, [[0, 1, 2]]),
        ]
        ep.set_placement([[4, 3, 2], [1, 0]])
        return made, later, ep.local_experts


def test_wrong_placements_are_refused_before_anything_is_sent(either_provider):
    for made, later, local in either_provider.run(ask_wrongly, 2):
        for case, (_, text) in WRONG.items():
            assert type(made[case]) is xccl.InvalidArgument, case
            assert text in str(made[case])
        assert all(type(error) is xccl.InvalidArgument for error in later)
        for error, text in zip(
            later, ["3 slots for rank 1: expected 2", "expert 4 is on no rank", "for 1 ranks"], strict=True
        ):
            assert text in str(error)
        assert local in ([4, 3, 2], [1, 0])


def test_a_plan_counts_the_rows_of_a_placement():
    shape = {"num_experts": 5, "hidden": 64, "max_tokens": 30, "topk": 2}
    rows = [
        xccl.ExpertParallel.plan(3, **shape, placement=REPLICATED, rank=rank)
        .title.split(" and ")[1]
        .split()[0]
        for rank in range(3)
    ]
    # Each expert gets 3 * 30 * 2 / 5 = 36: experts 0, 1, 4 with 3, 1, 2 replicas; 2, 0, 3; 0, 4.
    assert [int(count) for count in rows] == [12 + 36 + 18, 36 + 12 + 36, 12 + 18]
    shared = xccl.ExpertParallel.plan(3, **shape, placement=REPLICATED, rank=0, shared_experts=[0])
    assert (
        "98 rows received" in shared.title
    )  # 90 / 3 of the shared one; 45 for each of four others: 45 + 45 / 2
