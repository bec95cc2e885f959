"""`ExpertParallel.plan`: what it foretells is what happens, and it explains itself."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import error_of
from test_dispatch_combine import shape_arguments
from truth import Shape, experts_of, random_batch, scale

import xccl

# The least a piece takes, which is most of it where tokens are few.
SHAPES = {
    "many tokens": (Shape(16, 512, 256, 4), 3),
    "long rows of float32": (Shape(8, 4096, 32, 2, "float32"), 2),
    "few tokens": (Shape(8, 64, 4, 2), 4),
    "experts do not divide": (Shape(7, 1000, 100, 3, "float16"), 4),
    "each token once": (Shape(16, 512, 256, 4, layout="token"), 2),
    "rows as int8": (Shape(16, 512, 256, 4, dispatch_quant="int8", combine_quant="int8"), 2),
    "fp8 one way, each token once": (Shape(16, 700, 256, 4, layout="token", dispatch_quant="fp8_e4m3"), 2),
    "int8 back only": (Shape(8, 4096, 32, 2, "float32", combine_quant="int8"), 3),
}


def options(shape):
    return {name: getattr(shape, name) for name in ("layout", "dispatch_quant", "combine_quant")}


def use_as_planned(comm, shape):
    """Rounds of every kind, all with as many tokens as may be; returns what was taken and what had been planned."""
    rng = np.random.default_rng(comm.rank)
    most = 0
    with xccl.ExpertParallel(comm, *shape_arguments(shape), **options(shape)) as ep:
        for _number in range(8):
            batch = random_batch(rng, shape, shape.max_tokens)
            batch.topk_idx[:] = rng.permuted(
                np.tile(np.arange(shape.num_experts), (shape.max_tokens, 1)), axis=1
            )[:, : shape.topk]
            d = ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
            other = ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
            for result in (d, other):
                most = max(most, result.num_rows)
                out = result.output_buffer()
                for i, expert in enumerate(ep.local_experts):
                    out[result.rows_of(i)] = scale(expert, result.expert(i))
                ep.combine(out, result)
            d.release()
            other.release()
            del d, other, result, out
        taken = comm.committed_bytes
    plan = xccl.ExpertParallel.plan(
        comm.size, *shape_arguments(shape), **options(shape), rank=comm.rank, rows=most
    )
    return taken, plan


@pytest.mark.parametrize("case", SHAPES)
def test_the_plan_agrees_with_what_is_taken_within_a_tenth(either_provider, case):
    shape, size = SHAPES[case]
    for taken, plan in either_provider.run(use_as_planned, size, shape):
        assert taken == pytest.approx(plan.committed, rel=0.1), str(plan)


def test_an_even_spread_is_what_is_planned_for_if_nothing_else_is_said():
    plan = xccl.ExpertParallel.plan(4, 64, 1024, 32, 8)
    assert "32 tokens dispatched and 256 rows received per call" in plan.title
    fewer = xccl.ExpertParallel.plan(4, 64, 1024, 32, 8, tokens=16)
    assert "16 tokens dispatched and 128 rows received per call" in fewer.title
    assert fewer.committed < plan.committed
    assert fewer.reserved == plan.reserved


def test_a_plan_adds_up_and_prints_every_line():
    plan = xccl.ExpertParallel.plan(8, 256, 7168, 128, 8)
    printed = str(plan)
    assert plan.title in printed
    assert "in all" in printed
    assert plan.committed == sum(line.committed for line in plan.lines)
    assert plan.reserved == sum(line.reserved for line in plan.lines)
    for line in plan.lines:
        assert line.what in printed
        assert line.shrink in printed
        assert 0 <= line.committed <= line.reserved
    assert printed.count("\n") == len(plan.lines) + 2


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("results", [1, 2, 5])
def test_address_space_is_reserved_for_the_worst_case(size, results):
    shape = Shape(num_experts=10, hidden=700, max_tokens=50, topk=4)
    plan = xccl.ExpertParallel.plan(size, *shape_arguments(shape), results)
    every_token_to_one_rank = size * shape.max_tokens * shape.topk * shape.hidden * 2
    rows, outputs = [
        line
        for line in plan.lines
        if ("results" in line.what and "rows" in line.what) or "output" in line.what
    ]
    assert rows.reserved >= results * every_token_to_one_rank
    assert outputs.reserved >= results * every_token_to_one_rank
    assert plan.reserved < 2 * (rows.reserved + outputs.reserved) + 200 * 2**20


@pytest.mark.parametrize(
    "smaller", [{"hidden": 512}, {"max_tokens": 32}, {"topk": 4}, {"results": 1}, {"size": 4}]
)
def test_smaller_arguments_make_a_smaller_plan(smaller):
    arguments = {"size": 8, "num_experts": 64, "hidden": 1024, "max_tokens": 64, "topk": 8}
    plan, less = xccl.ExpertParallel.plan(**arguments), xccl.ExpertParallel.plan(**{**arguments, **smaller})
    assert less.reserved < plan.reserved
    assert less.committed < plan.committed or "size" in smaller  # fewer ranks send more to each


def test_ranks_without_experts_need_no_room_for_rows():
    plans = [xccl.ExpertParallel.plan(4, 2, 1024, 64, 2, rank=rank) for rank in range(4)]
    assert [len(experts_of(rank, 4, 2)) for rank in range(4)] == [1, 1, 0, 0]
    assert plans[0].committed == plans[1].committed > plans[2].committed == plans[3].committed
    assert "0 rows received" in plans[3].title


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("rank=4", {"rank": 4}),
        ("rank=-1", {"rank": -1}),
        ("dtype='int8'", {"dtype": "int8"}),
        ("num_experts=0", {"num_experts": 0}),
        ("hidden=0", {"hidden": 0}),
        ("topk=-2", {"topk": -2}),
        ("max_tokens=0", {"max_tokens": 0}),
        ("results=0", {"results": 0}),
        ("size=0", {"size": 0}),
        ("tokens=65", {"tokens": 65}),
        ("tokens=-1", {"tokens": -1}),
        ("rows=-1", {"rows": -1}),
        ("combine_quant='int4'", {"combine_quant": "int4"}),
        ("in_place", {"in_place": True, "dispatch_quant": "int8"}),
    ],
)
def test_a_plan_refuses_what_the_object_would_refuse(text, changes):
    arguments = {"size": 4, "num_experts": 64, "hidden": 1024, "max_tokens": 64, "topk": 8}
    error = error_of(lambda: xccl.ExpertParallel.plan(**{**arguments, **changes}))
    assert type(error) is xccl.InvalidArgument
    assert text in str(error)


@pytest.mark.parametrize("size", [100_000, 2**31 - 1])
def test_a_plan_for_more_ranks_than_can_join_is_refused_as_joining_would_be(size):
    error = error_of(xccl.ExpertParallel.plan, size, 1, 1, 1, 1)
    assert type(error) is xccl.OutOfMemory
    assert "control segment" in str(error)
    assert type(error_of(xccl.init, rank=0, size=size, job="too many", startup_timeout=1)) is type(error)
