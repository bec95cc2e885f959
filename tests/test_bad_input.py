"""Wrong arguments raise a typed error that names the argument, and the very same objects go on working.

Every mistake is made by rank 0 alone while the others go straight to the next good call: nothing was sent.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from ranks import error_of
from test_dispatch_combine import shape_arguments
from truth import Shape, combined, dispatched, random_batch, same_bits

import xccl

SHAPE = Shape(num_experts=5, hidden=24, max_tokens=6, topk=2)


def open_ep(comm, **changes):
    return xccl.ExpertParallel(comm, *shape_arguments(SHAPE), **changes)


def check_round(ep, comm, tokens=4):
    batches = [random_batch(np.random.default_rng(rank), SHAPE, tokens) for rank in range(comm.size)]
    mine = batches[comm.rank]
    with ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights) as d:
        same_bits(d.x, dispatched(comm.rank, batches, SHAPE).x)
        same_bits(ep.combine(d.x, d), combined(mine, SHAPE))


def misaligned(array):
    """The same numbers at an odd address."""
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    out = np.frombuffer(raw.data, array.dtype).reshape(array.shape)
    out[:] = array
    assert not out.flags.aligned
    return out


def read_only(array):
    array.flags.writeable = False
    return array


def out_of_range(batch, expert):
    idx = batch.topk_idx.copy()
    idx[2, 1] = expert
    return idx


def wide(array):
    """The same rows with a gap after each."""
    return np.repeat(array, 2, axis=1)[:, : array.shape[1]]


# What rank 0 gives instead of x, topk_idx, topk_weights: a change of the good batch, and what the error must say.
DISPATCH = {
    "x of another dtype": (lambda b: {"x": b.x.astype(np.float32)}, "x has dtype float32: expected bfloat16"),
    "x of another length of rows": (
        lambda b: {"x": b.x[:, 1:].copy()},
        "x has shape (4, 23): expected (n, 24)",
    ),
    "x of one dimension": (lambda b: {"x": b.x.reshape(-1)}, "x has shape (96,): expected (n, 24)"),
    "x not contiguous": (lambda b: {"x": wide(b.x)}, "x is not C-contiguous"),
    "x at an odd address": (lambda b: {"x": misaligned(b.x)}, "x is misaligned"),
    "x is a list": (lambda b: {"x": [1, 2]}, "x is a list"),
    "x is nothing": (lambda b: {"x": None}, "x is a NoneType"),
    "topk_idx of floats": (lambda b: {"topk_idx": b.topk_idx.astype(float)}, "topk_idx has dtype float64"),
    "topk_idx of small integers": (
        lambda b: {"topk_idx": b.topk_idx.astype(np.int16)},
        "topk_idx has dtype int16",
    ),
    "topk_idx unsigned": (lambda b: {"topk_idx": b.topk_idx.astype(np.uint64)}, "topk_idx has dtype uint64"),
    "topk_idx of other tokens": (
        lambda b: {"topk_idx": b.topk_idx[:3]},
        "topk_idx has shape (3, 2): expected (4, 2)",
    ),
    "topk_idx with too many slots": (
        lambda b: {"topk_idx": np.zeros((4, 3), int)},
        "topk_idx has shape (4, 3)",
    ),
    "topk_idx not contiguous": (lambda b: {"topk_idx": b.topk_idx[:, ::-1]}, "topk_idx is not C-contiguous"),
    "an expert too large": (
        lambda b: {"topk_idx": out_of_range(b, 5)},
        "token 2 names expert 5 in slot 1: expected -1",
    ),
    "an expert below -1": (
        lambda b: {"topk_idx": out_of_range(b, -2)},
        "token 2 names expert -2 in slot 1: expected -1",
    ),
    "an expert beyond 32 bits": (
        lambda b: {"topk_idx": out_of_range(b, 2**32)},
        "token 2 names expert 4294967296 in slot 1",
    ),
    "weights of another dtype": (
        lambda b: {"topk_weights": b.topk_weights.astype(float)},
        "topk_weights has dtype",
    ),
    "weights of another shape": (
        lambda b: {"topk_weights": b.topk_weights[:, :1]},
        "topk_weights has shape (4, 1)",
    ),
    "weights at an odd address": (
        lambda b: {"topk_weights": misaligned(b.topk_weights)},
        "topk_weights is misaligned",
    ),
    "no weights": (lambda b: {"topk_weights": None}, "topk_weights"),
    "no experts": (lambda b: {"topk_idx": None}, "topk_idx"),
    "a timeout of zero": (lambda b: {"timeout": 0}, "timeout=0"),
    "a negative timeout": (lambda b: {"timeout": -1.5}, "timeout=-1.5"),
    "a timeout that is no number": (lambda b: {"timeout": float("nan")}, "timeout=nan"),
    "a timeout without end": (lambda b: {"timeout": float("inf")}, "timeout=inf"),
    "a timeout of text": (lambda b: {"timeout": "1"}, "timeout='1'"),
}


def dispatch_wrongly(comm, name):
    change, _ = DISPATCH[name]
    with open_ep(comm) as ep:
        error = None
        if comm.rank == 0:
            batch = random_batch(np.random.default_rng(0), SHAPE, 4)
            arguments = {"x": batch.x, "topk_idx": batch.topk_idx, "topk_weights": batch.topk_weights}
            error = error_of(lambda: ep.dispatch(**{**arguments, **change(batch)}))
        check_round(ep, comm)
        return error


@pytest.mark.parametrize("name", DISPATCH)
def test_dispatch_refuses(either_provider, name):
    error = either_provider.run(dispatch_wrongly, 2, name)[0]
    assert type(error) is xccl.InvalidArgument
    assert DISPATCH[name][1] in str(error)


def dispatch_too_many_tokens(comm):
    with open_ep(comm) as ep:
        error = None
        if comm.rank == 1:
            big = random_batch(np.random.default_rng(1), SHAPE, 7)
            error = error_of(ep.dispatch, big.x, big.topk_idx, big.topk_weights)
            assert "an input buffer for 7 tokens: expected 0 to max_tokens=6" in str(
                error_of(ep.input_buffer, 7)
            )
            assert "an input buffer for -1 tokens: expected 0 to max_tokens=6" in str(
                error_of(ep.input_buffer, -1)
            )
        check_round(ep, comm, tokens=6)
        return error


def test_more_tokens_than_agreed_are_refused(either_provider):
    error = either_provider.run(dispatch_too_many_tokens, 2)[1]
    assert type(error) is xccl.InvalidArgument
    assert "x has 7 tokens: expected 0 to max_tokens=6" in str(error)


# What rank 0 does instead of combine(d.x, d).
COMBINE = {
    "rows of another dtype": (
        lambda ep, d, y: ep.combine(d.x.astype(np.float16), d),
        "rows has dtype float16",
    ),
    "too few rows": (lambda ep, d, y: ep.combine(d.x[1:], d), "rows has shape"),
    "rows of another length": (lambda ep, d, y: ep.combine(d.x[:, 1:], d), "rows has shape"),
    "rows not contiguous": (lambda ep, d, y: ep.combine(wide(d.x), d), "rows is not C-contiguous"),
    "rows at an odd address": (
        lambda ep, d, y: ep.combine(misaligned(np.asarray(d.x)), d),
        "rows is misaligned",
    ),
    "rows are a number": (lambda ep, d, y: ep.combine(3, d), "rows is a int"),
    "weights of another dtype": (
        lambda ep, d, y: ep.combine(d.x, d, weights=np.ones((4, 2))),
        "weights has dtype float64: expected float32",
    ),
    "weights of another shape": (
        lambda ep, d, y: ep.combine(d.x, d, weights=np.ones((3, 2), np.float32)),
        "weights has shape (3, 2): expected (4, 2)",
    ),
    "out of another shape": (
        lambda ep, d, y: ep.combine(d.x, d, out=y[1:]),
        "out has shape (3, 24): expected (4, 24)",
    ),
    "out of another dtype": (
        lambda ep, d, y: ep.combine(d.x, d, out=y.astype(np.float32)),
        "out has dtype float32: expected bfloat16",
    ),
    "out read-only": (lambda ep, d, y: ep.combine(d.x, d, out=read_only(y)), "out is read-only"),
    "out not contiguous": (lambda ep, d, y: ep.combine(d.x, d, out=wide(y)), "out is not C-contiguous"),
    "out not an array": (lambda ep, d, y: ep.combine(d.x, d, out=[0]), "out is a list"),
    "a timeout of zero": (lambda ep, d, y: ep.combine(d.x, d, timeout=0), "timeout=0"),
    "d is nothing": (lambda ep, d, y: ep.combine(d.x, None), "d is a NoneType"),
    "d is a routing": (lambda ep, d, y: ep.combine(d.x, d.routing), "d is a Routing"),
}


def combine_wrongly(comm, name):
    with open_ep(comm) as ep:
        batches = [random_batch(np.random.default_rng(rank), SHAPE, 4) for rank in range(comm.size)]
        mine = batches[comm.rank]
        with ep.dispatch(mine.x, mine.topk_idx, mine.topk_weights) as d:
            error = None
            if comm.rank == 0:
                error = error_of(lambda: COMBINE[name][0](ep, d, np.zeros_like(mine.x)))
            same_bits(ep.combine(d.x, d), combined(mine, SHAPE))
        check_round(ep, comm)
        return error


@pytest.mark.parametrize("name", COMBINE)
def test_combine_refuses(either_provider, name):
    error = either_provider.run(combine_wrongly, 2, name)[0]
    assert type(error) is xccl.InvalidArgument
    assert COMBINE[name][1] in str(error)


def use_the_wrong_d(comm):
    errors = {}
    with open_ep(comm, results=3) as ep, open_ep(comm) as other:
        batch = random_batch(np.random.default_rng(comm.rank), SHAPE, 4)
        arguments = batch.x, batch.topk_idx, batch.topk_weights
        theirs = other.dispatch(*arguments)
        gone = ep.dispatch(*arguments)
        x = np.array(gone.x)
        gone.release()
        errors["of another ExpertParallel"] = error_of(ep.combine, theirs.x, theirs)
        errors["has been released"] = error_of(ep.combine, x, gone)
        errors["rows are gone"] = error_of(lambda: gone.x)
        errors["been released; its"] = error_of(gone.output_buffer)
        check_round(ep, comm)
        same_bits(other.combine(theirs.x, theirs), combined(batch, SHAPE))
    return errors


def test_combine_needs_a_living_result_of_its_own(either_provider):
    for errors in either_provider.run(use_the_wrong_d, 2):
        assert all(type(error) is xccl.InvalidArgument for error in errors.values())
        assert "another ExpertParallel" in str(errors.pop("of another ExpertParallel"))
        assert all(text in str(error) for text, error in errors.items())


def use_routing_wrongly(comm):
    errors = {}
    with open_ep(comm) as ep:
        batch = random_batch(np.random.default_rng(comm.rank), SHAPE, 4)
        with ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights) as d:
            routing = d.routing
        if comm.rank == 0:
            errors = {
                "the routing was made for 4": error_of(ep.dispatch, batch.x[:3], routing=routing),
                "either topk_idx and topk_weights, or routing=": error_of(
                    ep.dispatch, batch.x, batch.topk_idx, batch.topk_weights, routing=routing
                ),
                "routing is a int": error_of(ep.dispatch, batch.x, routing=3),
            }
        check_round(ep, comm)
    return errors


def test_routing_must_fit(either_provider):
    for text, error in either_provider.run(use_routing_wrongly, 2)[0].items():
        assert type(error) is xccl.InvalidArgument
        assert text in str(error)


# --- Making an ExpertParallel ---------------------------------------------------------------------------------

ARGUMENTS = {
    "num_experts=0": {"num_experts": 0},
    "num_experts=-3": {"num_experts": -3},
    "hidden=0": {"hidden": 0},
    "max_tokens=0": {"max_tokens": 0},
    "topk=0": {"topk": 0},
    "topk=5000": {"topk": 5000},
    "results=0": {"results": 0},
    "max_tokens * topk * ranks": {"max_tokens": 2**24, "topk": 200},
    "dtype='int8'": {"dtype": "int8"},
    "dtype='nonsense'": {"dtype": "nonsense"},
    "dtype=3.5": {"dtype": 3.5},
    "dispatch_quant='int4'": {"dispatch_quant": "int4"},
    "combine_quant='fp8'": {"combine_quant": "fp8"},
    "combine_dtype='float32'": {"combine_dtype": "float32"},
    "layout='columns'": {"layout": "columns"},
    "num_experts=2.5": {"num_experts": 2.5},
    "hidden='wide'": {"hidden": "wide"},
    "max_tokens=None": {"max_tokens": None},
    "num_experts=18446744073709551616": {"num_experts": 2**64},
}


def make_wrongly(comm, changes):
    arguments = dict(num_experts=5, hidden=24, max_tokens=6, topk=2, dtype="bfloat16")
    error = (
        error_of(lambda: xccl.ExpertParallel(comm, **{**arguments, **changes})) if comm.rank == 0 else None
    )
    with open_ep(comm) as ep:
        check_round(ep, comm)
    return error


@pytest.mark.parametrize("text", ARGUMENTS)
def test_an_expert_parallel_refuses(either_provider, text):
    error = either_provider.run(make_wrongly, 2, ARGUMENTS[text])[0]
    assert type(error) is xccl.InvalidArgument
    assert text in str(error)


def make_with_planned_options_left_out(comm):
    options = {"dispatch_quant": None, "combine_quant": None, "combine_dtype": "bfloat16", "layout": "expert"}
    with open_ep(comm, **options) as ep:
        check_round(ep, comm)


def test_options_that_mean_what_is_done_anyway_are_taken(threads):
    threads.run(make_with_planned_options_left_out, 2)


# --- After the end -----------------------------------------------------------------------------------------------


def use_after_close(comm):
    ep, kept = open_ep(comm), open_ep(comm)
    batch = random_batch(np.random.default_rng(comm.rank), SHAPE, 4)
    d = ep.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    rows = np.array(d.x)
    ep.close()
    ep.close()
    errors = [
        error_of(ep.dispatch, batch.x, batch.topk_idx, batch.topk_weights),
        error_of(ep.combine, rows, d),
        error_of(ep.input_buffer, 1),
        error_of(d.output_buffer),
    ]
    check_round(kept, comm)
    comm.close()
    comm.close()
    errors += [
        error_of(kept.dispatch, batch.x, batch.topk_idx, batch.topk_weights),
        error_of(open_ep, comm),
        error_of(comm.barrier),
        error_of(comm.all_gather, rows),
        error_of(comm.empty, 3),
    ]
    assert comm.closed
    assert "closed" in repr(comm)
    assert comm.rank < comm.size
    return errors


def test_what_is_closed_raises_closed(either_provider):
    for errors in either_provider.run(use_after_close, 2):
        assert [type(error) for error in errors] == [xccl.Closed] * len(errors)


# --- Communicator -------------------------------------------------------------------------------------------------


def call_communicator_wrongly(comm):
    errors = {}
    if comm.rank == 0:
        errors = {
            "timeout=0": error_of(comm.barrier, timeout=0),
            "timeout=-1": error_of(comm.barrier, timeout=-1),
            "out has shape (2, 3)": error_of(comm.all_gather, np.zeros(3), out=np.zeros((2, 3), np.float32)),
            "out has shape (3, 3)": error_of(comm.all_gather, np.zeros(3), out=np.zeros((3, 3))),
            "writable C-contiguous": error_of(comm.all_gather, np.zeros(3), out=np.zeros((3, 2)).T),
            "expected a writable": error_of(comm.all_gather, np.zeros(3), out=read_only(np.zeros((2, 3)))),
            "a is a str": error_of(comm.all_gather, "text"),
            "out is a list": error_of(comm.all_gather, np.zeros(3), out=[0]),
            "shape": error_of(comm.empty, (3, -1)),
            "dtype='nonsense'": error_of(comm.empty, 3, "nonsense"),
        }
    comm.barrier()
    np.testing.assert_array_equal(comm.all_gather(np.array([comm.rank])), [[0], [1]])
    return errors


def test_a_communicator_refuses(either_provider):
    for text, error in either_provider.run(call_communicator_wrongly, 2)[0].items():
        assert type(error) is xccl.InvalidArgument, text
        assert text in str(error)


def two_threads_at_once(comm, turn):
    if comm.rank == 1:
        turn.wait(60)  # until rank 0's second thread has been refused: only then may the first come through
        comm.barrier()
        comm.barrier()
        return None
    found = []

    def barrier():
        try:
            comm.barrier()
            found.append(None)
        except xccl.InvalidArgument as error:
            found.append(error)
            turn.set()

    both = [threading.Thread(target=barrier) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    comm.barrier()
    return found


def test_a_second_thread_is_refused_and_the_first_is_not_disturbed(threads):
    refused, passed = threads.run(two_threads_at_once, 2, threading.Event())[0]
    assert "another thread is inside a call" in str(refused)
    assert passed is None


INIT = {
    "rank= and size= belong together": {"rank": 0},
    "job= is missing": {"rank": 0, "size": 2},
    "rank 3 of 2": {"rank": 3, "size": 2, "job": "wrong"},
    "rank -1 of 2": {"rank": -1, "size": 2, "job": "wrong"},
    "a job of 0 ranks": {"rank": 0, "size": 0, "job": "wrong"},
    "timeout=0": {"timeout": 0},
    "timeout=inf": {"timeout": float("inf")},
    "startup_timeout=-1": {"startup_timeout": -1},
    "startup_timeout=nan": {"startup_timeout": float("nan")},
    'provider "telepathy" does not exist; there are: posix_shm, local': {"provider": "telepathy"},
    "rank='one'": {"rank": "one", "size": 2, "job": "wrong"},
    "job=": {"rank": 0, "size": 1, "job": 7},
}


@pytest.mark.parametrize("text", INIT)
def test_init_refuses(text):
    error = error_of(lambda: xccl.init(**INIT[text]))
    assert type(error) is xccl.InvalidArgument
    assert text in str(error)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c: c.empty((2.7, 3)), "shape=2.7: expected a whole number"),
        (lambda c: c.empty("34"), "shape='34': expected a whole number or a sequence"),
        (lambda c: c.empty(None), "shape=None"),
        (lambda c: c.empty((3, -1)), "shape=-1"),
        (lambda c: c.barrier(timeout=True), "timeout=True"),
        (lambda c: c.barrier(timeout="1"), "timeout='1'"),
        (lambda c: xccl.ExpertParallel(None, 2, 4, 2, 1), "comm is a NoneType"),
        (lambda c: xccl.ExpertParallel(c, 2, 4, 2, 1, ">f4"), "byte order"),
        (lambda c: xccl.ExpertParallel.plan(2, 2, 4, 2, 1, rows=5), "rows=5: expected 0 to 4"),
        (lambda c: xccl.init(provider=3), "provider=3"),
        (lambda c: xccl.init(rank=0, size=1, job="a\ud800"), "printable"),
        (lambda c: xccl.spawn(print, 2.5), "nprocs=2.5"),
        (lambda c: xccl.spawn(print, 2, timeout=float("nan")), "timeout=nan"),
    ],
)
def test_what_cannot_be_meant_is_named(call, text):
    with xccl.init(provider="local") as comm:
        with pytest.raises(xccl.InvalidArgument) as caught:
            call(comm)
        assert text in str(caught.value)
        comm.barrier(timeout=np.float32(3))  # nothing has happened
