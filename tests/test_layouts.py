"""Layout "token": each token once. That rows and sums are right in it, test_dispatch_combine.py says."""

from __future__ import annotations

import numpy as np
from ranks import error_of
from truth import Shape, combined, dispatched, ordinary_values, random_batches, same_bits, scale

import xccl

SHAPE = Shape(num_experts=5, hidden=24, max_tokens=6, topk=2, layout="token")


def open_ep(comm, **changes):
    arguments = dict(num_experts=5, hidden=24, max_tokens=6, topk=2, layout="token")
    return xccl.ExpertParallel(comm, **{**arguments, **changes})


def reuse_routing(comm):
    ep = open_ep(comm)
    batches = random_batches(3, SHAPE, comm.size)
    mine = batches[comm.rank]
    with ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights) as d:
        routing = d.routing
    for number in range(4):
        rng = np.random.default_rng(number)
        others = [
            type(b)(ordinary_values(rng, b.x.shape, SHAPE.dtype), b.topk_idx, b.topk_weights) for b in batches
        ]
        with ep.dispatch(others[comm.rank].x, routing=routing) as d:
            same_bits(d.x, dispatched(comm.rank, others, SHAPE).x, "tokens")
            out = d.output_buffer()
            for i, expert in enumerate(ep.local_experts):
                out[d.rows_of(i)] = scale(expert, d.expert(i))
            same_bits(ep.combine(out, d), combined(others[comm.rank], SHAPE, scale), "sums")


def test_routing_can_be_used_again(ranks):
    ranks.run(reuse_routing, 3)


def combine_tokens(comm):
    ep = open_ep(comm, topk=1)
    x = np.ones((4, 24), ep.dtype)
    # As many tokens as rows, but not in the order of the experts.
    d = ep.dispatch(x, np.array([[3], [1], [4], [0]]), np.ones((4, 1), np.float32))
    error = error_of(ep.combine, d.x, d)
    same_bits(ep.combine(d.x[d.index], d), x, "sums")
    return error


def test_tokens_are_not_taken_for_results(ranks):
    for error in ranks.run(combine_tokens, 2):
        assert type(error) is xccl.InvalidArgument
        assert "rows are those of the result" in str(error)


def disagree(comm):
    return error_of(open_ep, comm, layout="token" if comm.rank else "expert")


def test_ranks_that_want_different_layouts_are_told(either_provider):
    for rank, error in enumerate(either_provider.run(disagree, 2)):
        assert type(error) is xccl.Mismatch
        assert error.ranks == [1 - rank]
        mine, theirs = ("token", "expert") if rank else ("expert", "token")
        assert f"rank {rank} has layout={mine}, rank {1 - rank} has {theirs}" in str(error)


def count_bytes(comm):
    taken = []
    for layout in ("expert", "token"):
        with open_ep(comm, layout=layout, hidden=1024, max_tokens=64, topk=4, results=1) as ep:
            before = comm.committed_bytes
            idx = np.tile(np.arange(4), (64, 1))
            ep.dispatch(ep.input_buffer(64), idx, np.ones((64, 4), np.float32))
            taken.append(comm.committed_bytes - before)
    return taken


def test_fewer_bytes_are_taken(ranks):
    for expert, token in ranks.run(count_bytes, 1):
        assert expert - token == 3 * 64 * 1024 * 2
