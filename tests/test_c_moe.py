"""The C library's dispatch, combine and planner, driven by cffi and compared with slow numpy (truth.py)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import truth
from c_api import (
    DEFAULT,
    NULL,
    CError,
    as_type,
    at,
    config,
    copied,
    created,
    ep_config,
    ffi,
    joined,
    lib,
    made,
    must,
    text,
)

import xccl

SHAPE = truth.Shape(num_experts=7, hidden=5, max_tokens=9, topk=2, dtype="bfloat16")


def batch_of(rank, seed):
    rng = np.random.default_rng([rank, seed])
    tokens = int(rng.integers(0, SHAPE.max_tokens + 1))
    return truth.Batch(
        rng.standard_normal((tokens, SHAPE.hidden)).astype(truth.DTYPES[SHAPE.dtype]),
        rng.integers(-1, SHAPE.num_experts, (tokens, SHAPE.topk)),
        rng.random((tokens, SHAPE.topk), np.float32),
    )


def rows_of(result):
    """All that a result says, copied."""
    routing = lib.xccl_result_routing(result)
    count = lib.xccl_result_row_count(result)
    assert count == lib.xccl_routing_row_count(routing)
    assert lib.xccl_result_counts(result) == lib.xccl_routing_counts(routing)
    in_x = lib.xccl_result_x_count(result)
    index = lib.xccl_result_index(result)
    return truth.Rows(
        copied(lib.xccl_result_x(result), in_x * SHAPE.hidden, truth.DTYPES["bfloat16"]).reshape(
            in_x, SHAPE.hidden
        ),
        lib.xccl_routing_counts(routing),
        copied(lib.xccl_routing_src_rank(routing), count, np.int32),
        copied(lib.xccl_routing_src_token(routing), count, np.int32),
        copied(lib.xccl_routing_weights(routing), count, np.float32),
        np.arange(count, dtype=np.int32) if index == NULL else copied(index, count, np.int32),
    )


def moe(part, narrow):
    """Dispatch, in place and through buffers, again by the routing, and combine. Returns what there is to compare."""
    batch = batch_of(part.rank, 1)
    tokens = len(batch.x)
    experts = batch.topk_idx.astype(np.int32 if narrow else np.int64)
    kind = lib.XCCL_INT32 if narrow else lib.XCCL_INT64
    weights = as_type("float", batch.topk_weights)
    with joined(part) as comm:
        ep = made("xccl_ep", lib.xccl_ep_create, comm, ep_config(), DEFAULT)
        count = ffi.new("size_t *")
        ids = lib.xccl_ep_local_experts(ep, count)
        local = [ids[i] for i in range(count[0])]
        y, z, w = (np.zeros((tokens, SHAPE.hidden), batch.x.dtype) for _ in range(3))

        d = made(
            "xccl_result", lib.xccl_ep_dispatch, ep, at(batch.x), tokens, at(experts), kind, weights, DEFAULT
        )
        rows = rows_of(d)
        counts = [rows.counts[i] for i in range(len(local))]
        must(lib.xccl_ep_combine(ep, lib.xccl_result_x(d), d, NULL, DEFAULT, at(y)))
        kept = made("xccl_routing", lib.xccl_routing_copy, lib.xccl_result_routing(d))
        assert lib.xccl_routing_token_count(kept) == tokens
        lib.xccl_result_release(d)
        assert lib.xccl_result_x(d) == NULL
        lib.xccl_result_release(d)
        lib.xccl_result_destroy(d)

        x = made("void", lib.xccl_ep_input_buffer, ep, tokens, DEFAULT)
        ffi.memmove(x, batch.x.tobytes(), batch.x.nbytes)
        again = made("xccl_result", lib.xccl_ep_dispatch_again, ep, x, tokens, kept, DEFAULT)
        assert rows_of(again).x.tobytes() == rows.x.tobytes()
        out = made("void", lib.xccl_result_output_buffer, again, DEFAULT)
        ffi.memmove(out, rows.x.tobytes(), rows.x.nbytes)
        must(lib.xccl_ep_combine(ep, out, again, NULL, DEFAULT, at(z)))
        doubled = np.ascontiguousarray(2 * batch.topk_weights)
        must(lib.xccl_ep_combine(ep, out, again, as_type("float", doubled), DEFAULT, at(w)))
        must(lib.xccl_ep_close(ep))
        must(lib.xccl_ep_close(ep))
        assert rows_of(again).x.tobytes() == rows.x.tobytes()
        lib.xccl_ep_destroy(ep)
        lib.xccl_result_destroy(again)
        lib.xccl_routing_destroy(kept)
    told = truth.Rows(rows.x, np.array(counts), rows.src_rank, rows.src_token, rows.weights, rows.index)
    return local, told, y, z, w


@pytest.mark.parametrize("narrow", [False, True], ids=["int64", "int32"])
def test_dispatch_and_combine_give_what_they_must(ranks, narrow):
    found = ranks.run(moe, 3, narrow, joins=False)
    batches = [batch_of(rank, 1) for rank in range(3)]
    for rank, (local, rows, y, z, w) in enumerate(found):
        expected = truth.dispatched(rank, batches, SHAPE)
        assert local == truth.experts_of(rank, 3, SHAPE.num_experts)
        for field in ("x", "counts", "src_rank", "src_token", "weights"):
            assert getattr(rows, field).tobytes() == getattr(expected, field).tobytes(), field
        mine = batches[rank]
        assert y.tobytes() == z.tobytes() == truth.combined(mine, SHAPE).tobytes()
        heavy = truth.Batch(mine.x, mine.topk_idx, 2 * mine.topk_weights)
        assert w.tobytes() == truth.combined(heavy, SHAPE).tobytes()


def in_halves(part):
    """Two objects, a call of each under way at once; the second goes again by the routing of the first round."""
    batches = [batch_of(part.rank, seed) for seed in (5, 6)]
    given = [
        (at(b.x), len(b.x), at(b.topk_idx), lib.XCCL_INT64, as_type("float", b.topk_weights)) for b in batches
    ]
    sums, found, routings = [np.zeros_like(b.x) for b in batches], [], []
    with joined(part) as comm:
        eps = [made("xccl_ep", lib.xccl_ep_create, comm, ep_config(), DEFAULT) for _ in batches]
        for again in (False, True):
            for ep, call in zip(eps, given, strict=True):
                if again:
                    routing = routings.pop(0)
                    must(lib.xccl_ep_dispatch_again_start(ep, *call[:2], routing, DEFAULT))
                    lib.xccl_routing_destroy(routing)
                else:
                    must(lib.xccl_ep_dispatch_start(ep, *call, DEFAULT))
            with pytest.raises(CError, match="has been started") as caught:
                must(lib.xccl_ep_dispatch_start(eps[0], *given[0], DEFAULT))
            assert caught.value.status == "XCCL_INVALID_ARGUMENT"
            routings = []
            for ep, y in zip(eps, sums, strict=True):
                while (status := lib.xccl_ep_can_finish(ep)) == lib.XCCL_PENDING:
                    pass
                must(status)
                d = made("xccl_result", lib.xccl_ep_dispatch_finish, ep, DEFAULT)
                y[:] = 0
                must(lib.xccl_ep_combine_start(ep, lib.xccl_result_x(d), d, NULL, DEFAULT, at(y)))
                routings.append(made("xccl_routing", lib.xccl_routing_copy, lib.xccl_result_routing(d)))
                lib.xccl_result_destroy(d)  # the rows stay until they have been combined
            for ep in eps:
                must(lib.xccl_ep_combine_finish(ep, DEFAULT))
            found += [y.copy() for y in sums]
        with pytest.raises(CError, match="no dispatch has been started"):
            made("xccl_result", lib.xccl_ep_dispatch_finish, eps[0], DEFAULT)
        with pytest.raises(CError, match="nothing has been started"):
            must(lib.xccl_ep_can_finish(eps[0]))
        for ep, routing in zip(eps, routings, strict=True):
            lib.xccl_ep_destroy(ep)
            lib.xccl_routing_destroy(routing)
    return found


def test_in_halves_the_sums_are_the_same(ranks):
    for rank, found in enumerate(ranks.run(in_halves, 3, joins=False)):
        expected = [truth.combined(batch_of(rank, seed), SHAPE).tobytes() for seed in (5, 6)]
        assert [y.tobytes() for y in found] == 2 * expected


def tokens_once(part):
    batch = batch_of(part.rank, 3)
    y = np.zeros_like(batch.x)
    with joined(part) as comm:
        shape = ep_config(layout=lib.XCCL_LAYOUT_TOKEN)
        ep = made("xccl_ep", lib.xccl_ep_create, comm, shape, DEFAULT)
        given = at(batch.x), len(batch.x), at(batch.topk_idx), lib.XCCL_INT64
        weights = as_type("float", batch.topk_weights)
        d = made("xccl_result", lib.xccl_ep_dispatch, ep, *given, weights, DEFAULT)
        rows = rows_of(d)
        results = np.ascontiguousarray(rows.x[rows.index])
        must(lib.xccl_ep_combine(ep, at(results), d, NULL, DEFAULT, at(y)))
        lib.xccl_result_destroy(d)
        lib.xccl_ep_destroy(ep)
    return rows.x, rows.index, y


def test_in_layout_token_each_token_comes_once(ranks):
    shape = dataclasses.replace(SHAPE, layout="token")
    batches = [batch_of(rank, 3) for rank in range(3)]
    for rank, (x, index, y) in enumerate(ranks.run(tokens_once, 3, joins=False)):
        expected = truth.dispatched(rank, batches, shape)
        assert x.tobytes() == expected.x.tobytes()
        assert index.tobytes() == expected.index.tobytes()
        assert y.tobytes() == truth.combined(batches[rank], shape).tobytes()


def quantised(part, quant):
    """Dispatch and combine with quantised rows; the codes and scales that came, and the sums."""
    batch = batch_of(part.rank, 4)
    y = np.zeros_like(batch.x)
    with joined(part) as comm:
        ep = made(
            "xccl_ep", lib.xccl_ep_create, comm, ep_config(dispatch_quant=quant, combine_quant=quant), DEFAULT
        )
        given = at(batch.x), len(batch.x), at(batch.topk_idx), lib.XCCL_INT64
        weights = as_type("float", batch.topk_weights)
        d = made("xccl_result", lib.xccl_ep_dispatch, ep, *given, weights, DEFAULT)
        count = lib.xccl_result_row_count(d)
        codes = copied(lib.xccl_result_x(d), count * SHAPE.hidden, np.uint8).reshape(count, -1)
        scales = copied(lib.xccl_result_scales(d), count, np.float32)  # hidden 5: one block
        refused = ""
        if count:
            with pytest.raises(CError, match="quantised") as caught:
                must(lib.xccl_ep_combine(ep, lib.xccl_result_x(d), d, NULL, DEFAULT, at(y)))
            refused = caught.value.status
        results = np.ones((count, SHAPE.hidden), batch.x.dtype)
        must(lib.xccl_ep_combine(ep, at(results), d, NULL, DEFAULT, at(y)))
        lib.xccl_result_release(d)
        assert lib.xccl_result_scales(d) == NULL
        lib.xccl_result_destroy(d)
        lib.xccl_ep_destroy(ep)
    return codes, scales, y, refused


@pytest.mark.parametrize("quant", truth.CODES)
def test_rows_are_quantised_as_from_python(ranks, quant):
    number = {"int8": lib.XCCL_QUANT_INT8, "fp8_e4m3": lib.XCCL_QUANT_FP8_E4M3}[quant]
    batches = [batch_of(rank, 4) for rank in range(3)]
    for rank, (codes, scales, y, refused) in enumerate(ranks.run(quantised, 3, number, joins=False)):
        expected, expected_scales = truth.quantised(truth.dispatched(rank, batches, SHAPE).x, quant)
        assert codes.tobytes() == expected.tobytes()
        assert scales.tobytes() == expected_scales.tobytes()
        assert refused == "XCCL_INVALID_ARGUMENT" or not len(codes)

        def ones(expert, row):
            return truth.dequantised(*truth.quantised(np.ones_like(row)[None], quant))[0]

        assert y.tobytes() == truth.combined(batches[rank], SHAPE, ones).tobytes()


def destroy_in_a_strange_order(part):
    comm = created(part)
    ep = made("xccl_ep", lib.xccl_ep_create, comm, ep_config(), DEFAULT)
    batch = batch_of(part.rank, 2)
    d = made(
        "xccl_result",
        lib.xccl_ep_dispatch,
        ep,
        at(batch.x),
        len(batch.x),
        at(batch.topk_idx),
        lib.XCCL_INT64,
        as_type("float", batch.topk_weights),
        DEFAULT,
    )
    before = rows_of(d).x.tobytes()
    request = made("xccl_request", lib.xccl_comm_irecv, comm, lib.XCCL_ANY_SOURCE, 1, NULL, 0)
    lib.xccl_comm_destroy(comm)
    with pytest.raises(CError) as caught:
        must(lib.xccl_request_wait(request, 1.0, NULL))
    assert caught.value.status == "XCCL_CLOSED"
    lib.xccl_ep_destroy(ep)
    assert rows_of(d).x.tobytes() == before
    lib.xccl_request_destroy(request)
    lib.xccl_result_destroy(d)


def test_handles_may_be_given_back_in_any_order(either_provider):
    either_provider.run(destroy_in_a_strange_order, 2, joins=False)


@pytest.mark.parametrize("quant", [None, "int8"])
def test_the_plan_is_that_of_python(quant):
    shape = {"num_experts": 16, "hidden": 96, "max_tokens": 32, "topk": 4}
    given = {**shape, "combine_quant": lib.XCCL_QUANT_INT8 if quant else lib.XCCL_QUANT_NONE}
    load = config("xccl_plan_load", rank_count=4, rank=3, tokens=20)
    plan = made("xccl_plan", lib.xccl_plan_create, config("xccl_ep_config", **given), load)
    count = ffi.new("size_t *")
    lines = lib.xccl_plan_lines(plan, count)
    found = [
        (text(lines[i].what), lines[i].committed, lines[i].reserved, text(lines[i].shrink))
        for i in range(count[0])
    ]
    expected = xccl.ExpertParallel.plan(4, **shape, combine_quant=quant, rank=3, tokens=20).lines
    assert found == [(line.what, line.committed, line.reserved, line.shrink) for line in expected]
    lib.xccl_plan_destroy(plan)


PLACEMENT = [[0, 1, 4, 6], [], [-1, 2, 0, 3, 5]]
LATER = [[6, 5, 4, 3], [], [2, 1, 0, 6, -1]]


def place_freely(part):
    """Rounds under two placements, with a shared expert: local experts, rows, sums and load of each; and a plan."""
    batch = batch_of(part.rank, 4)
    weights = np.concatenate([batch.topk_weights, np.ones((len(batch.x), 1), np.float32)], 1)
    now, later = (ffi.new("int32_t[]", [e for row in rows for e in row]) for rows in (PLACEMENT, LATER))
    counts = ffi.new("int32_t[]", [len(row) for row in PLACEMENT])
    shared = ffi.new("int32_t[]", [6])
    given = ep_config(placement=now, slot_counts=counts, shared_experts=shared, shared_count=1)
    found = []
    with joined(part) as comm:
        ep = made("xccl_ep", lib.xccl_ep_create, comm, given, DEFAULT)
        for placement in PLACEMENT, LATER:
            if placement is LATER:
                must(lib.xccl_ep_set_placement(ep, later, len(later), DEFAULT))
            count = ffi.new("size_t *")
            ids = lib.xccl_ep_local_experts(ep, count)
            local = [ids[i] for i in range(count[0])]
            call = at(batch.x), len(batch.x), at(batch.topk_idx), lib.XCCL_INT64, as_type("float", weights)
            d = made("xccl_result", lib.xccl_ep_dispatch, ep, *call, DEFAULT)
            rows = rows_of(d)
            told = truth.Rows(rows.x, None, rows.src_rank, rows.src_token, rows.weights, rows.index)
            y = np.zeros_like(batch.x)
            must(lib.xccl_ep_combine(ep, lib.xccl_result_x(d), d, NULL, DEFAULT, at(y)))
            load = np.zeros(SHAPE.num_experts, np.int64)
            must(lib.xccl_ep_expert_load(ep, 1, as_type("int64_t", load)))
            lib.xccl_result_destroy(d)
            found.append((local, told, y, load))
        with pytest.raises(CError, match="expected one for each of the 9 slots"):
            must(lib.xccl_ep_set_placement(ep, later, 8, DEFAULT))
        lib.xccl_ep_destroy(ep)
    return found


def test_placements_shared_experts_and_load(either_provider):
    batches = [batch_of(rank, 4) for rank in range(3)]
    wider = dataclasses.replace(SHAPE, topk=SHAPE.topk + 1)
    for rank, rounds in enumerate(either_provider.run(place_freely, 3, joins=False)):
        for (local, rows, y, load), placement in zip(rounds, (PLACEMENT, LATER), strict=True):
            expected = truth.dispatched(rank, batches, SHAPE, placement, [6])
            mine = truth.with_shared(batches[rank], [6])
            assert local == placement[rank]
            for field in ("x", "src_rank", "src_token", "weights"):
                assert getattr(rows, field).tobytes() == getattr(expected, field).tobytes(), field
            assert y.tobytes() == truth.combined(mine, wider).tobytes()
            assert load.tolist() == np.bincount(mine.topk_idx.ravel() + 1, minlength=8)[1:].tolist()


def test_a_placement_that_lacks_something_is_refused():
    held, counts = ffi.new("int32_t[]", list(range(7))), ffi.new("int32_t[]", [7])
    for name, fields in {
        "slot_counts": {"placement": held},
        "placement": {"slot_counts": counts},
        "shared_experts": {"shared_count": 1},
        "shared_count": {"shared_count": -1},
    }.items():
        load = config("xccl_plan_load", rank_count=1)
        with pytest.raises(CError, match=f"config->{name}") as caught:
            must(lib.xccl_plan_create(ep_config(**fields), load, ffi.new("xccl_plan **")))
        assert caught.value.status == "XCCL_INVALID_ARGUMENT"
