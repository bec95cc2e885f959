"""What a dispatch returns, and the buffers around it: the pool of results, routing used again, no-copy buffers."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from ranks import error_of
from test_dispatch_combine import shape_arguments
from truth import (
    DTYPES,
    Shape,
    combined,
    dispatched,
    ordinary_values,
    random_batch,
    random_batches,
    same_bits,
    scale,
)

import xccl

SHAPE = Shape(num_experts=5, hidden=24, max_tokens=6, topk=2)


def open_ep(comm, shape=SHAPE, **options):
    return xccl.ExpertParallel(comm, *shape_arguments(shape), **options)


def dispatch(ep, batch, **options):
    return ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights, **options)


def check_rows(d, batches, rank, shape=SHAPE):
    expected = dispatched(rank, batches, shape)
    same_bits(d.x, expected.x, "rows")
    np.testing.assert_array_equal(d.src_rank, expected.src_rank)
    np.testing.assert_array_equal(d.src_token, expected.src_token)


def check_round(ep, batches, rank, shape=SHAPE):
    """A whole round, to see that everything still works."""
    with dispatch(ep, batches[rank]) as d:
        check_rows(d, batches, rank, shape)
        y = ep.combine(scaled(ep, d), d)
    same_bits(y, combined(batches[rank], shape, scale), "sums")


def scaled(ep, d):
    """The experts' results in private memory."""
    out = np.empty_like(np.asarray(d.x))
    for i, expert in enumerate(ep.local_experts):
        out[d.rows_of(i)] = scale(expert, d.expert(i))
    return out


# --- Several objects on one communicator ---------------------------------------------------------------------


def interleave_three(comm, seed):
    shapes = [
        Shape(5, 24, 6, 2, "bfloat16"),
        Shape(2, 7, 3, 1, "float32"),
        Shape(9, 100, 8, 4, "float16"),
    ]
    eps = [open_ep(comm, shape) for shape in shapes]
    rng = np.random.default_rng(seed)
    under_way = []  # (which, its batches, its result), dispatched and not yet combined
    for number in range(120):
        # All ranks draw the same numbers, and so make the same calls.
        busy = [which for which, _, _ in under_way]
        which = int(rng.integers(len(eps)))
        if which in busy:
            _, batches, d = under_way.pop(busy.index(which))
            check_rows(d, batches, comm.rank, shapes[which])
            y = eps[which].combine(scaled(eps[which], d), d)
            same_bits(y, combined(batches[comm.rank], shapes[which], scale), f"object {which}, call {number}")
            d.release()
        else:
            batches = [random_batch(rng, shapes[which]) for _ in range(comm.size)]
            under_way.append((which, batches, dispatch(eps[which], batches[comm.rank])))
        if number % 10 == 0:
            comm.barrier()


def test_several_objects_take_turns_on_one_communicator(ranks):
    ranks.run(interleave_three, 3, 17)


def make_and_close_many(comm):
    committed = []
    for number in range(30):
        with open_ep(comm) as ep:
            check_round(ep, random_batches(number, SHAPE, comm.size), comm.rank)
        comm.barrier()
        committed.append(comm.committed_bytes)
    return committed


def test_closed_objects_give_their_memory_back(ranks):
    for committed in ranks.run(make_and_close_many, 2):
        # The control lines of an object are free again only when all ranks are known to have closed it.
        assert max(committed[5:]) <= max(committed[:5])


# --- Routing used again ---------------------------------------------------------------------------------------


def reuse_routing(comm):
    ep = open_ep(comm)
    batches = random_batches(1, SHAPE, comm.size)
    mine = batches[comm.rank]
    with dispatch(ep, mine) as d:
        routing = d.routing
    for number in range(2, 8):  # long after release, with other rounds between
        check_round(ep, random_batches(number, SHAPE, comm.size), comm.rank)
        rng = np.random.default_rng(number)
        others = [
            type(b)(ordinary_values(rng, b.x.shape, SHAPE.dtype), b.topk_idx, b.topk_weights) for b in batches
        ]
        with ep.dispatch(others[comm.rank].x, routing=routing) as d:
            check_rows(d, others, comm.rank)
            y = ep.combine(scaled(ep, d), d)
        same_bits(y, combined(others[comm.rank], SHAPE, scale), "sums")


def test_routing_can_be_used_again_after_release(ranks):
    ranks.run(reuse_routing, 3)


def mix_up_routing(comm):
    ep = open_ep(comm)
    batches = [random_batch(np.random.default_rng(r), SHAPE, tokens=4) for r in range(comm.size)]
    mine = batches[comm.rank]
    routings = []
    for _ in range(2):
        with dispatch(ep, mine) as d:
            routings.append(d.routing)
    return error_of(ep.dispatch, mine.x, routing=routings[comm.rank % 2])


def test_different_routings_on_different_ranks_are_a_mismatch(ranks):
    for error in ranks.run(mix_up_routing, 2):
        assert isinstance(error, xccl.Mismatch)
        assert "routing of call #1" in str(error)
        assert "routing of call #2" in str(error)


def use_a_foreign_routing(comm):
    ours, other = open_ep(comm), open_ep(comm, Shape(64, 24, 6, 2))
    batches = random_batches(1, Shape(64, 24, 6, 2), comm.size)
    with dispatch(other, batches[comm.rank]) as d:
        error = error_of(ours.dispatch, batches[comm.rank].x, routing=d.routing)
    check_round(ours, random_batches(2, SHAPE, comm.size), comm.rank)
    check_round(other, batches, comm.rank, Shape(64, 24, 6, 2))
    return error


def test_routing_of_another_object_is_refused(ranks):
    for error in ranks.run(use_a_foreign_routing, 2):
        assert isinstance(error, xccl.InvalidArgument)
        assert "routing" in str(error)


# --- The pool of results ---------------------------------------------------------------------------------------


def exhaust_the_pool(comm):
    ep = open_ep(comm)
    batches = [random_batches(seed, SHAPE, comm.size) for seed in range(4)]
    first = dispatch(ep, batches[0][comm.rank])
    second = dispatch(ep, batches[1][comm.rank])
    error = error_of(dispatch, ep, batches[2][comm.rank])
    assert isinstance(error, xccl.OutOfMemory), repr(error)
    assert "results=3" in str(error)
    # Nothing is lost: both can be read and combined, and room made for the third.
    check_rows(first, batches[0], comm.rank)
    check_rows(second, batches[1], comm.rank)
    same_bits(ep.combine(scaled(ep, first), first), combined(batches[0][comm.rank], SHAPE, scale))
    first.release()
    third = dispatch(ep, batches[2][comm.rank])
    check_rows(second, batches[1], comm.rank)
    check_rows(third, batches[2], comm.rank)
    same_bits(ep.combine(scaled(ep, second), second), combined(batches[1][comm.rank], SHAPE, scale))
    same_bits(ep.combine(scaled(ep, third), third), combined(batches[2][comm.rank], SHAPE, scale))


def test_a_third_living_result_is_refused_and_nothing_is_lost(ranks):
    ranks.run(exhaust_the_pool, 2)


def exhaust_the_pool_on_rank_0(comm):
    ep = open_ep(comm, results=1)
    batches = random_batches(1, SHAPE, comm.size)
    d = dispatch(ep, batches[comm.rank])
    if comm.rank == 0:
        error = error_of(dispatch, ep, batches[0])
        assert isinstance(error, xccl.OutOfMemory), repr(error)
    d.release()
    check_round(ep, batches, comm.rank)


def test_one_rank_without_room_can_make_room_while_the_others_wait(ranks):
    ranks.run(exhaust_the_pool_on_rank_0, 3)


def keep_a_view(comm):
    ep = open_ep(comm, results=1)
    batches = [random_batch(np.random.default_rng(r), SHAPE, tokens=6) for r in range(comm.size)]
    d = dispatch(ep, batches[comm.rank])
    view = d.x[1:2].reshape(-1)[3:5]
    d.release()
    assert isinstance(error_of(lambda: d.x), xccl.InvalidArgument)
    assert isinstance(error_of(dispatch, ep, batches[comm.rank]), xccl.OutOfMemory)
    same_bits(view, dispatched(comm.rank, batches, SHAPE).x[1, 3:5])
    del view
    gc.collect()
    check_round(ep, batches, comm.rank)


def test_a_view_of_released_rows_keeps_them(ranks):
    ranks.run(keep_a_view, 2)


def drop_results(comm):
    ep = open_ep(comm, results=1)
    for seed in range(10):
        d = dispatch(ep, random_batches(seed, SHAPE, comm.size)[comm.rank])
        del d
        gc.collect()


def use_one_memory(comm):
    ep = open_ep(comm, results=3)
    addresses = set()
    for seed in range(5):
        batches = random_batches(seed, SHAPE, comm.size)
        with dispatch(ep, batches[comm.rank]) as d:
            addresses.add(d.x.ctypes.data)
            same_bits(ep.combine(scaled(ep, d), d), combined(batches[comm.rank], SHAPE, scale))
    assert len(addresses) == 1


def test_the_memory_of_the_last_result_is_the_first_to_be_used_again(ranks):
    """The caches may still hold it; and results that are never alive together take no memory."""
    ranks.run(use_one_memory, 2)


def test_dropping_a_result_releases_it(ranks):
    ranks.run(drop_results, 2)


def read_after_the_end(comm):
    batches = random_batches(3, SHAPE, comm.size)
    ep = open_ep(comm)
    d = dispatch(ep, batches[comm.rank])
    y = ep.combine(d.x, d)
    buffer = ep.input_buffer(2)
    buffer[:] = 5
    ep.close()
    check_rows(d, batches, comm.rank)
    comm.close()
    check_rows(d, batches, comm.rank)
    same_bits(y, combined(batches[comm.rank], SHAPE))
    assert (buffer == 5).all()
    d.x[:] = 1  # still writable memory
    assert d.routing.num_rows == d.num_rows == len(d.x)


def test_results_stay_readable_when_everything_is_closed(ranks):
    ranks.run(read_after_the_end, 3)


def describe(comm):
    ep = open_ep(comm)
    batches = random_batches(4, SHAPE, comm.size)
    d = dispatch(ep, batches[comm.rank])
    rows = [np.array(d.expert(i)) for i in range(len(ep.local_experts))]
    np.testing.assert_array_equal(np.concatenate([*rows, d.x[:0]]), d.x)
    assert [len(part) for part in rows] == d.counts.tolist()
    for array in (d.src_rank, d.src_token, d.weights, d.counts):
        assert not array.flags.writeable
    assert d.routing.num_tokens == len(batches[comm.rank].x)
    assert d.scales is None
    assert f"{d.num_rows} rows" in repr(d)
    d.release()
    d.release()
    assert "released" in repr(d)
    assert "5 experts" in repr(ep)


def test_a_result_describes_itself(ranks):
    ranks.run(describe, 2)


# --- Buffers that save a copy ------------------------------------------------------------------------------------


def use_input_buffers(comm):
    ep = open_ep(comm)
    for seed in range(40):
        batches = random_batches(seed, SHAPE, comm.size)
        mine = batches[comm.rank]
        tokens = len(mine.x)
        x = ep.input_buffer(min(SHAPE.max_tokens, tokens + seed % 3))
        x[:tokens] = mine.x
        with ep.dispatch(x[:tokens], mine.topk_idx, mine.topk_weights) as d:
            check_rows(d, batches, comm.rank)
            if seed % 4 == 0:
                same_bits(ep.combine(d.x, d), combined(mine, SHAPE), "sums")


def test_tokens_may_be_written_straight_into_the_input_buffer(ranks):
    ranks.run(use_input_buffers, 3)


def mix_input_buffers_and_private_arrays(comm):
    ep = open_ep(comm)
    for seed in range(40):
        batches = random_batches(seed, SHAPE, comm.size)
        mine = batches[comm.rank]
        x = mine.x.copy()
        if (seed + comm.rank) % 3:  # not the same way on every rank
            x = ep.input_buffer(len(mine.x))
            x[:] = mine.x
        with ep.dispatch(x, mine.topk_idx, mine.topk_weights) as d:
            x[:] = 0 if (seed + comm.rank) % 3 == 0 else x  # a private array is free again on return
            check_rows(d, batches, comm.rank)


def test_ranks_need_not_agree_about_input_buffers(ranks):
    ranks.run(mix_input_buffers_and_private_arrays, 3)


def use_output_buffers(comm):
    ep = open_ep(comm)
    for seed in range(40):
        batches = random_batches(seed, SHAPE, comm.size)
        with dispatch(ep, batches[comm.rank]) as d:
            out = d.output_buffer()
            out[:] = scaled(ep, d)
            same_bits(ep.combine(out, d), combined(batches[comm.rank], SHAPE, scale), f"round {seed}")


def test_results_may_be_written_straight_into_the_output_buffer(ranks):
    ranks.run(use_output_buffers, 3)


def combine_in_every_way(comm):
    ep = open_ep(comm)
    for seed in range(12):
        batches = random_batches(seed, SHAPE, comm.size)
        expected = combined(batches[comm.rank], SHAPE, scale)
        d = dispatch(ep, batches[comm.rank])
        results = scaled(ep, d)
        same_bits(ep.combine(results, d), expected, "a private array")
        out = d.output_buffer()
        out[:] = results
        same_bits(ep.combine(out, d), expected, "the output buffer")
        ours = comm.empty(results.shape, SHAPE.dtype)
        ours[:] = results
        same_bits(ep.combine(ours, d), expected, "an array of the application area")
        d.x[:] = results
        same_bits(ep.combine(d.x, d), expected, "in place")
        same_bits(ep.combine(d.x, d), expected, "in place, again")
        d.release()


def test_one_result_can_be_combined_again_and_from_any_memory(ranks):
    ranks.run(combine_in_every_way, 3)


def combine_with_other_weights(comm):
    ep = open_ep(comm)
    batches = random_batches(6, SHAPE, comm.size)
    mine = batches[comm.rank]
    d = dispatch(ep, mine)
    other = np.random.default_rng(comm.rank).standard_normal(mine.topk_weights.shape, np.float32)
    same_bits(ep.combine(d.x, d, weights=other), combined(type(mine)(mine.x, mine.topk_idx, other), SHAPE))
    same_bits(ep.combine(d.x, d), combined(mine, SHAPE), "those given to dispatch are not forgotten")
    ones = np.ones_like(other)
    y = np.full(mine.x.shape, 9, mine.x.dtype)
    assert ep.combine(d.x, d, weights=ones, out=y) is y
    same_bits(y, combined(type(mine)(mine.x, mine.topk_idx, ones), SHAPE))
    shared = comm.empty(mine.x.shape, SHAPE.dtype)
    assert ep.combine(d.x, d, out=shared) is shared
    same_bits(shared, combined(mine, SHAPE))


def test_weights_and_the_output_array_can_be_given(ranks):
    ranks.run(combine_with_other_weights, 3)


def combine_an_older_result(comm):
    ep = open_ep(comm, results=3)
    batches = [random_batches(seed, SHAPE, comm.size) for seed in range(3)]
    results = [dispatch(ep, b[comm.rank]) for b in batches]
    for which in (1, 2, 0, 1):
        d = results[which]
        y = ep.combine(scaled(ep, d), d)
        same_bits(y, combined(batches[which][comm.rank], SHAPE, scale), f"result {which}")


def test_results_can_be_combined_in_any_order(ranks):
    ranks.run(combine_an_older_result, 2)


class OnlyInterface:
    """An array that speaks nothing but `__array_interface__`."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


def dispatch_foreign_arrays(comm):
    shape = Shape(5, 24, 6, 2, "float32")
    ep = open_ep(comm, shape)
    batches = random_batches(8, shape, comm.size)
    mine = batches[comm.rank]
    for take in (memoryview, OnlyInterface):
        d = ep.dispatch(take(mine.x), take(mine.topk_idx.astype(np.int32)), take(mine.topk_weights))
        check_rows(d, batches, comm.rank, shape)
        y = ep.combine(take(scaled(ep, d)), d, weights=take(mine.topk_weights))
        same_bits(y, combined(mine, shape, scale), take.__name__)
        d.release()


def test_arrays_of_other_libraries_are_taken_as_they_are(ranks):
    ranks.run(dispatch_foreign_arrays, 2)


# --- Threads ------------------------------------------------------------------------------------------------------


def two_communicators(part, rounds):
    """Each rank has two communicators, and a thread for each."""
    comms = [
        xccl.init(rank=part.rank, size=part.size, job=f"{part.job}-{which}", provider=part.provider)
        for which in range(2)
    ]
    failures = []

    def work(which):
        try:
            with comms[which], open_ep(comms[which]) as ep:
                for seed in range(rounds):
                    check_round(ep, random_batches((which, seed), SHAPE, part.size), part.rank)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_two_threads_with_a_communicator_each_do_not_disturb_each_other(ranks):
    ranks.run(two_communicators, 2, 30, joins=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_of_rows_can_be_given_as_an_object(threads, dtype):
    threads.run(open_with_dtype, 1, DTYPES[dtype])


def open_with_dtype(comm, dtype):
    with xccl.ExpertParallel(comm, 2, 4, 4, 1, dtype) as ep:
        assert ep.input_buffer(3).dtype == dtype


def combine_different_results_of_one_routing(comm):
    ep = xccl.ExpertParallel(comm, 2, 4, 2, 1, "float32")
    idx, weights = np.array([[0], [1]]), np.ones((2, 1), np.float32)
    first = ep.dispatch(np.ones((2, 4), np.float32), idx, weights)
    second = ep.dispatch(np.full((2, 4), 100, np.float32), routing=first.routing)
    mine = second if comm.rank else first
    try:
        ep.combine(mine.x, mine)
    except xccl.Mismatch as error:
        return str(error)


def test_ranks_that_combine_different_results_of_one_routing_are_told(either_provider):
    for text in either_provider.run(combine_different_results_of_one_routing, 2):
        assert "result of dispatch #1" in text
        assert "result of dispatch #2" in text


def sums_into_results_of_another(comm):
    one, other = (xccl.ExpertParallel(comm, 2, 4, 2, 1, "float32") for _ in range(2))
    idx, weights = np.array([[0], [1]]), np.ones((2, 1), np.float32)
    d, e = (ep.dispatch(np.ones((2, 4), np.float32), idx, weights) for ep in (one, other))
    with pytest.raises(xccl.InvalidArgument, match="output lies in the rows of a result"):
        other.combine(e.x, e, out=d.x)
    return bool((other.combine(e.x, e) == 1).all())


def test_sums_do_not_go_into_the_results_of_any_object(either_provider):
    assert either_provider.run(sums_into_results_of_another, 1) == [True]


def wrong_expert(comm):
    ep = xccl.ExpertParallel(comm, 2, 4, 2, 1, "float32")
    d = ep.dispatch(np.ones((1, 4), np.float32), np.array([[0]]), np.ones((1, 1), np.float32))
    for wrong in (-1, 2):
        with pytest.raises(xccl.InvalidArgument, match=f"i={wrong}: expected 0 to 1"):
            d.expert(wrong)
    return True


def test_an_expert_that_is_not_here_is_named(either_provider):
    assert either_provider.run(wrong_expert, 1) == [True]
