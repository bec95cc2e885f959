"""Point to point from Python: paths, order, wildcards, requests, borrowed messages, deadlines, wrong arguments."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
import time
import weakref
from typing import Any

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from ranks import Ranks, error_of, mark, marked, sleeps_steadily, wait_until

import xccl
from xccl import _core

# Around the ends of the paths: inlined up to 48 bytes, eager up to 8192, then announced.
SIZES = [0, 1, 48, 49, 8192, 8193, 70_000, 3_000_001]


def pattern(nbytes: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def array_of(comm, nbytes, in_area):
    return comm.empty(nbytes, "uint8") if in_area else np.empty(nbytes, np.uint8)


def every_size(comm):
    for size in SIZES:
        for source_in_area in (False, True):
            for target_in_area in (False, True):
                x = array_of(comm, size, source_in_area)
                x[:] = pattern(size, size)
                if comm.rank == 0:
                    comm.send(x, dst=1, tag=size)
                else:
                    y = array_of(comm, size + 5, target_in_area)
                    y[:] = 7
                    status = comm.recv(y, src=0, tag=size)
                    assert status == (0, size, size)
                    assert (status.src, status.tag, status.nbytes) == (0, size, size)
                    assert y[:size].tobytes() == x.tobytes()
                    assert (y[size:] == 7).all()
    return True


def test_messages_of_every_size_arrive_from_and_into_both_kinds_of_memory(ranks):
    assert ranks.run(every_size, 2) == [True, True]


def ring(comm):
    x = np.full(3, comm.rank, np.int64)
    y = np.empty(3, np.int64)
    status = comm.sendrecv(
        x, (comm.rank + 1) % comm.size, y, src=(comm.rank - 1) % comm.size, send_tag=1, recv_tag=1
    )
    big, got = np.full(100_000, comm.rank, np.float32), np.empty(100_000, np.float32)
    comm.sendrecv(big, (comm.rank + 1) % comm.size, got)
    return status.src, y.tolist(), float(got[-1])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_sendrecv_in_a_ring_ends(ranks, size):
    before = [(rank - 1) % size for rank in range(size)]
    assert ranks.run(ring, size) == [(left, [left] * 3, float(left)) for left in before]


def reverse_tags(comm):
    arrays = [pattern(i * 29 % 20_000, i) for i in range(1000)]
    if comm.rank == 0:
        requests = [comm.isend(array, 1, tag=i) for i, array in enumerate(arrays)]
        del arrays  # requests keep them
        comm.barrier()
        return [request.wait().nbytes for request in requests] == [i * 29 % 20_000 for i in range(1000)]
    comm.barrier()
    for i in reversed(range(1000)):
        y = np.empty(len(arrays[i]), np.uint8)
        comm.recv(y, 0, tag=i)
        assert y.tobytes() == arrays[i].tobytes()
    return comm.iprobe() is None


def test_a_thousand_sends_before_the_first_receive_in_reverse_order_of_tags(ranks):
    assert ranks.run(reverse_tags, 2) == [True, True]


def storm(comm, messages, seed):
    """Everybody knows the whole plan; contents are compared by hash."""
    plan = random.Random(seed)
    luck = random.Random(seed * 100 + comm.rank)
    live: list[tuple[xccl.Request, np.ndarray[Any, Any] | None, bytes, int]] = []

    def finish_one():
        request, array, digest, nbytes = live.pop(0)
        status = request.wait()
        if array is not None:
            assert status.nbytes == nbytes
            assert hashlib.blake2b(array[:nbytes].tobytes()).digest() == digest

    for _ in range(messages):
        source, target, tag = plan.randrange(comm.size), plan.randrange(comm.size), plan.randrange(4)
        size = plan.choice([*SIZES[:-1], plan.randrange(200_000)])
        shift, from_area, into_area = plan.randrange(1 << 16), plan.random() < 0.5, plan.random() < 0.5
        if comm.rank not in (source, target):
            continue
        content = BYTES[shift : shift + size]
        if comm.rank == target:
            y = array_of(comm, size, into_area)
            digest = hashlib.blake2b(content.tobytes()).digest()
            live.append((comm.irecv(y, source, tag), y, digest, size))
        if comm.rank == source:
            x = array_of(comm, size, from_area)
            x[:] = content
            live.append((comm.isend(x, target, tag), None, b"", size))
        while len(live) > luck.randrange(1, 100):
            finish_one()
    while live:
        finish_one()
    return comm.iprobe() is None


BYTES = pattern(1 << 19, 1)
WORDS = np.random.default_rng(2).integers(0, 1 << 60, 1 << 14)


def numbered(source, tag, number, words):
    """A message that says what it is, so that whoever gets it through a wildcard can check it."""
    return np.concatenate([[source, tag, number, words], WORDS[number % 100 :][:words]])


def wildcard_storm(comm, plan, luck_seed, closes):
    """`plan`: (source, target, tag, words). Exact sources only if a rank `closes` after its first receives."""
    luck = random.Random(luck_seed * 10 + comm.rank)
    mine = [(i, *one) for i, one in enumerate(plan)]
    coming = [(i, source, tag) for i, source, target, tag, _ in mine if target == comm.rank]
    y, requests, closed = np.empty(4 + len(WORDS), np.int64), [], []
    for i, source, target, tag, words in mine:
        if source != comm.rank:
            continue
        try:
            requests.append(comm.isend(numbered(source, tag, i, words), target, tag))
        except xccl.Closed as error:  # that rank has closed already, and the call finds it at once
            closed.append(error.ranks)
    for received in range(len(coming)):
        if closes == comm.rank and received >= 2:
            comm.close()
            return closed
        _, source, tag = coming[0] if closes is not None else luck.choice(coming)
        wild = closes is None
        try:
            status = comm.recv(
                y,
                xccl.ANY_SOURCE if wild and luck.random() < 0.5 else source,
                xccl.ANY_TAG if wild and luck.random() < 0.5 else tag,
            )
        except xccl.Closed as error:
            closed.append(error.ranks)
            coming.pop(0)
            continue
        found = int(y[2])
        # The first of its source and tag that is still to come.
        assert found == next(i for i, s, t in coming if (s, t) == (status.src, status.tag))
        expected = numbered(status.src, status.tag, found, int(y[3]))
        assert status.nbytes == expected.nbytes
        assert (y[: len(expected)] == expected).all()
        coming.remove((found, status.src, status.tag))
    for request in requests:
        try:
            request.wait()
        except xccl.Closed as error:
            closed.append(error.ranks)
    return closed


# Words around the ends of the paths: 4 more make 48 bytes, 8192 bytes.
plans = st.integers(2, 4).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            st.tuples(
                st.integers(0, size - 1),
                st.integers(0, size - 1),
                st.integers(0, 2),
                st.sampled_from([0, 1, 2, 3, 1019, 1020, 1021, 9000]),
            ),
            max_size=60,
        ),
    )
)


@hypothesis.given(plans, st.integers(0, 99))
@hypothesis.settings(max_examples=20)
def test_any_storm_arrives_whole_and_in_order_through_wildcards(either_provider, planned, luck):
    size, plan = planned
    assert either_provider.run(wildcard_storm, size, plan, luck, None) == [[]] * size


@hypothesis.given(plans, st.integers(0, 3))
@hypothesis.settings(max_examples=20)
def test_a_rank_that_closes_in_the_middle_of_a_storm_hangs_nobody(threads, planned, closes):
    size, plan = planned
    for closed in threads.run(wildcard_storm, size, plan, 0, closes % size):
        assert all(named == [closes % size] for named in closed)


def test_a_storm_of_random_messages(ranks):
    assert ranks.run(storm, 4, 2000, 3) == [True] * 4


def test_a_hundred_thousand_messages_among_six_ranks(processes):
    assert processes.run(storm, 6, 100_000, 4) == [True] * 6


def very_large(comm, nbytes):
    step = 1 << 26
    if comm.rank == 0:
        x = np.zeros(nbytes, np.uint8)
        for at in range(0, nbytes, step):
            x[at : at + 8] = np.frombuffer(at.to_bytes(8, "little"), np.uint8)
        comm.send(x, 1, timeout=100)
        return nbytes
    y = np.empty(nbytes, np.uint8)
    status = comm.recv(y, 0, timeout=100)
    assert all(int.from_bytes(y[at : at + 8].tobytes(), "little") == at for at in range(0, nbytes, step))
    assert np.count_nonzero(y[-step:]) == np.count_nonzero(
        np.frombuffer((nbytes - step).to_bytes(8, "little"), "u1")
    )
    return status.nbytes


@pytest.mark.long
def test_a_message_of_five_gibibytes(processes):
    nbytes = 5 << 30
    if _core.machine()["memory_headroom"] < 2 * nbytes + (1 << 30):
        pytest.skip("needs 11 GiB of memory")
    assert processes.run(very_large, 2, nbytes) == [nbytes, nbytes]


def dtypes(comm):
    for dtype in ("bfloat16", "float16", "int64", "bool"):
        x = comm.empty((7, 5), dtype)
        x[...] = 1
        if comm.rank == 0:
            comm.send(x, 1)
            comm.send(memoryview(bytearray(b"abc")), 1)
        else:
            y = np.zeros((7, 5), x.dtype)
            assert comm.recv(y, 0).nbytes == x.nbytes
            assert (y == x).all()
            text = bytearray(3)
            comm.recv(text, 0)
            assert text == b"abc"
    return True


def test_arrays_of_any_dtype_and_other_buffers(either_provider):
    assert either_provider.run(dtypes, 2) == [True, True]


def truncated(comm):
    for size in (40, 4000, 100_000):
        x = pattern(size, 3)
        if comm.rank == 0:
            comm.send(x, 1, tag=2)
            continue
        y = np.empty(size, np.uint8)
        with pytest.raises(
            xccl.Truncated, match=rf"{size} bytes from rank 0 with tag 2 .* {size - 1} bytes"
        ) as caught:
            comm.recv(y[:-1], 0)
        assert caught.value.ranks == [0]
        request = comm.irecv(y[:-1], 0)
        with pytest.raises(xccl.Truncated):
            request.wait()
        assert comm.probe().nbytes == size
        comm.recv(y, 0)
        assert y.tobytes() == x.tobytes()
    return True


def test_a_message_that_does_not_fit_stays_for_a_larger_receive(ranks):
    assert ranks.run(truncated, 2) == [True, True]


def timeouts(comm):
    x, y = pattern(200_000, 9), np.empty(200_000, np.uint8)
    if comm.rank == 0:
        with pytest.raises(xccl.Timeout, match="rank 1") as caught:
            comm.send(x, 1, timeout=0.05)
        assert caught.value.ranks == [1]
        assert caught.value.op == "send"
        comm.barrier()
        comm.send(x, 1)
        return True
    with pytest.raises(xccl.Timeout, match="rank 0"):
        comm.recv(y, 0, tag=77, timeout=0.05)
    request = comm.irecv(y, 0, tag=77)
    assert request.test() is False
    with pytest.raises(xccl.Timeout):
        request.wait(timeout=0.05)
    assert not request.done
    with pytest.raises(xccl.Timeout):
        comm.probe(0, timeout=0.01, tag=77)
    comm.barrier()
    comm.recv(y, 0)
    assert y.tobytes() == x.tobytes()
    assert comm.iprobe() is None
    return True


def test_who_gives_up_has_taken_and_sent_nothing_and_may_try_again(ranks):
    assert ranks.run(timeouts, 2) == [True, True]


def cancelled(comm):
    y = np.zeros(200_000, np.uint8)
    for in_area in (False, True):
        x = array_of(comm, 200_000, in_area)
        if comm.rank == 0:
            for size in (40, 4000):  # buffered, and so sent
                x[:] = 1
                request = comm.isend(x[:size], 1, tag=1)
                assert request.cancel() is False
                assert request.wait().nbytes == size
            request = comm.isend(x, 1, tag=1)
            assert request.cancel() is True
            assert request.cancel() is True
            assert request.done
            with pytest.raises(xccl.Closed, match="this request has been cancelled"):
                request.wait()
            with pytest.raises(xccl.Closed):
                request.test()
            x[:] = 2
            comm.barrier()
            comm.send(x, 1, tag=1)
            comm.barrier()
            continue
        first = comm.irecv(y, 0, tag=9)
        assert first.cancel() is True
        with pytest.raises(xccl.Closed):
            first.wait()
        for size in (40, 4000):
            comm.recv(y[:size], 0, tag=1)
            assert (y[:size] == 1).all()
        comm.barrier()
        request = comm.irecv(y, 0, tag=1)
        while not request.test():
            pass
        assert request.cancel() is False
        assert (y == 2).all()
        assert comm.iprobe() is None
        comm.barrier()
    return True


def test_a_request_is_cancelled_while_nothing_has_matched_it(ranks):
    assert ranks.run(cancelled, 2) == [True, True]


def let_go_of_a_cancelled_array(comm):
    x = np.zeros(200_000, np.uint8)
    alive = weakref.ref(x)
    request = comm.isend(x, comm.rank, tag=1)
    del x
    assert alive() is not None
    assert request.cancel()
    return alive() is None


def test_a_cancelled_request_lets_go_of_its_array(ranks):
    assert ranks.run(let_go_of_a_cancelled_array, 1) == [True]


def cancel_after_the_end(comm, folder):
    request = comm.irecv(np.empty(8, np.uint8), 1 - comm.rank)
    mark(folder, f"{comm.rank}")
    if comm.rank == 0:
        wait_until(lambda: marked(folder, "1"), "rank 1 has its request")
        comm.abort("enough")
    error = error_of(comm.barrier)
    return type(error), type(error_of(request.cancel))


def test_after_a_failure_cancel_tells_the_first_cause(either_provider, tmp_path):
    found = either_provider.run(cancel_after_the_end, 2, tmp_path)
    assert found == [(xccl.Error,) * 2, (xccl.PeerFailed,) * 2]


def views(comm):
    for size in SIZES:
        for in_area in (False, True):
            x = array_of(comm, size, in_area)
            x[:] = pattern(size, size)
            if comm.rank == 0:
                comm.send(x, 1, tag=4)
                continue
            with comm.recv_view(0, tag=4) as v:
                assert v.tobytes() == x.tobytes()
                assert not v.flags.writeable
                assert v.dtype == np.uint8
    if comm.rank == 0:
        x = comm.empty((100, 60), "bfloat16")
        x[...] = 3
        comm.send(x, 1)
        request = comm.isend(x, 1)
        comm.barrier()
        if comm._native.direct:
            assert not request.test()  # lent
        comm.barrier()
        request.wait()
        return True
    with pytest.raises(xccl.InvalidArgument, match=r"12000 bytes .* is not an array of 12200 bytes"):
        comm.recv_view(0, dtype="bfloat16", shape=(100, 61))
    with pytest.raises(xccl.InvalidArgument, match=r"12000 bytes .* is not made of elements of 7 bytes"):
        comm.recv_view(0, dtype="V7")
    with comm.recv_view(0, dtype="bfloat16", shape=(100, 60)) as v:
        assert v.dtype == ml_dtypes.bfloat16
        assert (v.astype(np.float32) == 3).all()
    view = comm.recv_view(0, dtype="bfloat16")
    assert (view.src, view.tag, view.nbytes) == (0, 0, 12000)
    assert float(view.array[5]) == 3
    comm.barrier()
    comm.barrier()  # rank 0 has looked
    view.release()
    view.release()
    with pytest.raises(xccl.InvalidArgument, match="released"):
        _ = view.array
    return True


def test_messages_are_borrowed_and_given_back(ranks):
    assert ranks.run(views, 2) == [True, True]


def kept_array(comm):
    first, others = np.full(4000, 1, np.uint8), np.full(4000, 9, np.uint8)
    if comm.rank == 0:
        comm.send(first, 1, tag=1)
        lent = comm.empty(100_000, "uint8")
        lent[:] = 1
        request = comm.isend(lent, 1, tag=2)
        comm.barrier()
        for _ in range(600):  # more than there is room for, beside what rank 1 still holds
            comm.send(others, 1)
        if comm._native.direct:
            assert not request.test()
        comm.barrier()
        request.wait()
        return True
    buffered, announced = comm.recv_view(0, tag=1).array, comm.recv_view(0, tag=2).array[5:]
    comm.barrier()
    y = np.empty(4000, np.uint8)
    for _ in range(600):
        comm.recv(y, 0, tag=0)
    comm.barrier()
    assert (buffered == 1).all()
    assert (announced == 1).all()
    del buffered, announced
    return True


def test_an_array_whose_view_was_dropped_keeps_the_message(ranks):
    assert ranks.run(kept_array, 2) == [True, True]


def unshowable(comm):
    comm.send(np.arange(8, dtype=np.uint8), comm.rank)
    for options, text in [
        ({"dtype": object}, "Python objects"),
        ({"dtype": "f4,O"}, "Python objects"),
        ({"dtype": "S"}, "no bytes"),
        ({"dtype": "V", "shape": 8}, "no bytes"),
        ({"dtype": [("twice", "i4"), ("twice", "i4")]}, "is not a dtype"),
        ({"shape": (1.5,)}, "shape=1.5: expected a whole number"),
        ({"shape": "abc"}, "shape='abc': expected"),
        ({"shape": -1}, "shape=-1: expected 0"),
        ({"shape": (2**61 + 1, 8)}, "too big"),
        ({"shape": (0, 2**62), "dtype": "int64"}, "too big"),
        ({"shape": [1] * 100}, "maximum supported dimension"),
    ]:
        with pytest.raises(xccl.InvalidArgument, match=text):
            comm.recv_view(comm.rank, **options)
    with comm.recv_view(comm.rank, dtype="(2,)i2", shape=(1, 2)) as view:
        return view.tolist()


def test_a_view_that_numpy_cannot_show_is_refused_and_the_message_stays(processes):
    assert processes.run(unshowable, 1) == [[[[0x100, 0x302], [0x504, 0x706]]]]


def lent_for_too_long(comm):
    if comm.rank == 1:
        view = comm.recv_view(0)
        comm.barrier()  # the send has given up, and its array was dropped
        borrowed = set(view.array.tolist())
        view.release()
        comm.barrier()
        return borrowed
    x = comm.empty(100_000, "uint8")
    x[:] = 1
    phase = None
    while phase != "lent":  # until rank 1 has come, nothing is sent
        with pytest.raises(xccl.Timeout, match="rank 1") as caught:
            comm.send(x, 1, timeout=0.02)
        phase = caught.value.phase
    del x
    comm.empty(100_000, "uint8")[:] = 2
    comm.barrier()
    comm.barrier()
    comm.send(np.zeros(3), 0)  # nothing is broken
    comm.recv(np.zeros(3), 0)
    return True


def test_the_array_of_a_send_that_gave_up_while_its_message_was_borrowed_stays(pool):
    direct = Ranks("posix_shm", pool, {"XCCL_DIRECT": "1"})
    assert direct.run(lent_for_too_long, 2) == [True, {1}]


def views_and_forks(comm):
    x = comm.empty(100_000, "uint8")
    if comm.rank == 0:
        request = comm.isend(x, 1)
        comm.barrier()
        comm.barrier()  # the child has gone
        assert not request.test()
        comm.barrier()
        request.wait()
        return True
    view = comm.recv_view(0)
    comm.barrier()
    child = os.fork()
    if child == 0:
        view.release()
        os._exit(0)
    os.waitpid(child, 0)
    comm.barrier()
    comm.barrier()  # rank 0 has looked
    view.release()
    return True


def test_a_forked_child_that_drops_a_view_does_not_give_the_message_back(pool):
    direct = Ranks("posix_shm", pool, {"XCCL_DIRECT": "1"})
    assert direct.run(views_and_forks, 2) == [True, True]


def wrong_arguments(comm):
    x = np.zeros(4, np.float32)
    read_only = np.zeros(4)
    read_only.flags.writeable = False
    cases = [
        (lambda: comm.send(x, 2), xccl.InvalidArgument, "destination is 2: expected 0 to 1"),
        (lambda: comm.send(x, -1), xccl.InvalidArgument, "destination is -1"),
        (lambda: comm.send(x, 1, tag=-1), xccl.InvalidArgument, "tag=-1: expected 0"),
        (lambda: comm.send(x, 1, tag=2**31), xccl.InvalidArgument, "tag=2147483648"),
        (lambda: comm.send(x, 1, tag="a"), xccl.InvalidArgument, "tag is a str"),
        (lambda: comm.send(x, 1.0), xccl.InvalidArgument, "dst is a float"),
        (lambda: comm.send(x, 1, timeout=0), xccl.InvalidArgument, "timeout=0"),
        (lambda: comm.send(x, 1, timeout="x"), xccl.InvalidArgument, "timeout='x'"),
        (lambda: comm.send(x, 1, timeout=True), xccl.InvalidArgument, "timeout=True"),
        (lambda: comm.barrier(timeout=True), xccl.InvalidArgument, "timeout=True"),
        (lambda: comm.send(x, 1, timeout=10**400), xccl.InvalidArgument, "timeout=1000"),
        (lambda: comm.barrier(timeout=10**400), xccl.InvalidArgument, "timeout=1000"),
        (lambda: comm.send([1, 2], 1), xccl.InvalidArgument, "array is a list"),
        (lambda: comm.send(np.zeros((4, 4))[:, 1], 1), xccl.InvalidArgument, "array is not C-contiguous"),
        (lambda: comm.send(np.array([object()]), 1), xccl.InvalidArgument, "Python objects"),
        (lambda: comm.recv(read_only, 0), xccl.InvalidArgument, "array is read-only"),
        (lambda: comm.recv(np.float64(0), 0), xccl.InvalidArgument, "array is read-only"),
        (lambda: comm.sendrecv(x, 0, np.int32(0)), xccl.InvalidArgument, "into is read-only"),
        (lambda: comm.broadcast(np.float64(0)), xccl.InvalidArgument, "read-only"),
        (lambda: comm.recv(x, 5), xccl.InvalidArgument, "source is 5: expected 0 to 1, or -1 for any"),
        (lambda: comm.irecv(x, 0, tag=-2), xccl.InvalidArgument, "tag=-2"),
        (lambda: comm.sendrecv(x, 0, x), xccl.InvalidArgument, "share memory"),
        (lambda: comm.send(x), TypeError, "misses the argument dst"),
        (lambda: comm.send(x, 1, 0, 1.0, 5), TypeError, "too many"),
        (lambda: comm.send(x, 1, colour=3), TypeError, "unexpected argument colour"),
        (lambda: comm.send(x, 1, dst=1), TypeError, "two values for dst"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind) as caught:
            call()
        assert text in str(caught.value), str(caught.value)
    comm.barrier()
    return comm.iprobe() is None  # nothing was sent


def test_wrong_arguments_are_named_and_nothing_is_sent(either_provider):
    assert either_provider.run(wrong_arguments, 2) == [True, True]


def in_order_from_anywhere(comm):
    if comm.rank:
        for i in range(300):
            comm.send(np.full(1 + 700 * (i % 3), i, np.int32), 0, tag=i % 5)
        return True
    following = [0] * comm.size
    y = np.empty(2000, np.int32)
    for _ in range(300 * (comm.size - 1)):
        there = comm.probe()
        status = comm.recv(y, xccl.ANY_SOURCE, xccl.ANY_TAG)
        assert status == there
        assert y[0] == following[status.src]
        assert status.tag == following[status.src] % 5
        following[status.src] += 1
    return following[1:] == [300] * (comm.size - 1)


def test_messages_of_a_rank_come_in_order_also_through_wildcards(ranks):
    assert ranks.run(in_order_from_anywhere, 3) == [True] * 3


def progress_in_other_calls(comm):
    x, y = pattern(5_000_000, 1), np.empty(5_000_000, np.uint8)
    sub = comm.split(0)
    if comm.rank == 0:
        request = comm.isend(x, 1)
        comm.barrier()  # rank 1 comes only when it has the message
        sub.barrier()
        request.wait()
    else:
        comm.recv(y, 0)
        comm.barrier()
        request = comm.isend(x, 0)
        sub.barrier()
    if comm.rank == 0:
        request = comm.irecv(y, 1)
    request.wait()
    sub.close()
    return y.tobytes() == x.tobytes()


def test_messages_go_on_inside_other_calls_also_of_other_communicators(ranks):
    assert ranks.run(progress_in_other_calls, 2) == [True, True]


def made_while_a_request_ends(comm, folder):
    sub, native = comm.split(0), comm._native.split(0, 0, -1.0)
    if comm.rank == 1:
        wait_until(lambda: marked(folder, "spinning"), "rank 0 keeps the GIL")
        comm.recv(np.empty(20_000), 0)
        sub.barrier()
        xccl.Communicator(native).close()
        sub.close()
        return True
    request = comm.isend(np.ones(20_000), 1)
    waiting = threading.Thread(target=sub.barrier)
    waiting.start()
    wait_until(
        lambda: sleeps_steadily(waiting.native_id),
        "it waits in the barrier, and goes on with the message there",
    )
    interval = sys.getswitchinterval()
    mark(folder, "spinning")
    sys.setswitchinterval(1000)
    try:
        # Keeps the GIL, which the other thread needs now in order to let go of the array.
        enough = time.monotonic() + 2
        while time.monotonic() < enough:
            pass
        made = xccl.Communicator(native)
    finally:
        sys.setswitchinterval(interval)
    waiting.join()
    made.close()
    sub.close()
    return request.done


def test_a_communicator_is_made_while_another_thread_lets_go_of_an_array(processes, tmp_path):
    assert processes.run(made_while_a_request_ends, 2, tmp_path) == [True, True]


def another_thread_runs(comm):
    """Whether one did during an irecv that finds its message, and during tests of one that is streamed."""
    nbytes, rounds = 1 << 26, 20
    if comm.rank == 0:
        x = comm.empty(nbytes, "uint8")
        x[:] = 1
        for _ in range(rounds):
            comm.send(x, 1, tag=1)
        comm.send(np.ones(nbytes, np.uint8), 1, tag=2)
        return [True, True]
    turns, ends = [0], threading.Event()

    def take_turns():
        while not ends.is_set():
            turns[0] += 1
            time.sleep(0)  # hands over the GIL

    def turns_during(call, *args):
        before = turns[0]
        result = call(*args)
        return turns[0] - before, result

    y, interval = np.zeros(nbytes, np.uint8), sys.getswitchinterval()
    thread = threading.Thread(target=take_turns)
    thread.start()
    sys.setswitchinterval(1000)  # so another thread runs only when a call lets it
    try:
        received = tested = 0
        for _ in range(rounds):
            comm.probe(0, tag=1)
            ran, request = turns_during(comm.irecv, y, 0, 1)
            received += ran
            request.wait()
        request, done = comm.irecv(y, 0, 2), False
        while not done:
            ran, done = turns_during(request.test)
            tested += ran
    finally:
        ends.set()
        sys.setswitchinterval(interval)
        thread.join()
    return [received > 0, tested > 0]


def test_another_thread_runs_while_much_is_copied(processes):
    assert processes.run(another_thread_runs, 2) == [[True, True]] * 2


def messages_to_one_in_a_barrier_with_another(comm):
    """Rank 0 must be woken by rank 1, which it does not wait for, with every message: slices of 50 ms would be 30 s."""
    count, x = 600, np.ones(100_000, np.uint8)
    if comm.rank == 0:
        requests = [comm.isend(x, 1) for _ in range(count)]
        comm.barrier(timeout=15)  # its first word comes from rank 2
        return all(request.test() for request in requests)
    if comm.rank == 1:
        for _ in range(count):
            comm.recv(x, 0)
        comm.send(x[:1], 2)
    else:
        comm.recv(x, 1)
    comm.barrier()
    return True


def test_who_waits_for_one_rank_is_woken_for_messages_by_another(processes):
    assert processes.run(messages_to_one_in_a_barrier_with_another, 3) == [True] * 3


def lost_peer(comm):
    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    requests = [comm.isend(pattern(100_000, 1), 1), comm.irecv(np.empty(3), 1)]
    ended = []
    for call in (
        lambda: comm.recv(np.empty(3), 1, timeout=20),
        requests[0].wait,
        requests[1].wait,
        comm.barrier,
    ):
        try:
            call()
        except xccl.PeerLost as error:
            ended.append(error.ranks)
    return ended


def test_a_receive_from_a_rank_that_is_killed_ends_and_names_it(processes):
    outcomes = processes.outcomes(lost_peer, 2)
    assert outcomes[0].value == [[1]] * 4, outcomes[0]


def polls(comm, how):
    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    x, y = np.empty(3), np.empty(100_000)
    request = comm.irecv(x, 1)
    call = {
        "iprobe": lambda: comm.iprobe(1),
        "iprobe from anywhere": comm.iprobe,
        "test": request.test,
        "isend": lambda: comm.isend(y, 1),
        "short timeouts": lambda: comm.recv(x, 1, timeout=0.003),
    }[how]
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            call()
        except xccl.Timeout:
            continue
        except xccl.PeerLost as error:
            return error.ranks
        time.sleep(0.001)
    return None


@pytest.mark.parametrize("how", ["iprobe", "iprobe from anywhere", "test", "isend", "short timeouts"])
def test_who_only_asks_learns_of_a_death_too(processes, how):
    outcomes = processes.outcomes(polls, 2, how)
    assert outcomes[0].value == [1], outcomes[0]


def polls_closed(comm):
    if comm.rank == 1:
        return None
    x, told = np.empty(3), []
    request = comm.irecv(x, 1)
    for call in (
        lambda: comm.iprobe(1),
        request.test,
        lambda: comm.recv(x, 1, timeout=0.003),
    ):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                call()
            except xccl.Timeout:
                continue
            except xccl.Closed as error:
                told.append(error.ranks)
                break
    assert comm.iprobe() is None  # which needs nobody in particular
    return told


def test_who_only_asks_learns_that_a_rank_has_closed_too(ranks):
    assert ranks.run(polls_closed, 2)[0] == [[1]] * 3


def closing(comm):
    if comm.rank == 0:
        comm.send(np.arange(1000), 1)  # buffered
        comm.close()
        return True
    time.sleep(0.2)
    y = np.empty(1000, np.int64)
    comm.recv(y, 0)
    assert (y == np.arange(1000)).all()
    request = comm.irecv(y, 0)
    with pytest.raises(xccl.Closed) as caught:
        comm.recv(y, 0)
    assert caught.value.ranks == [0]
    comm.close()
    with pytest.raises(xccl.Closed):
        request.wait()
    with pytest.raises(xccl.Closed):
        comm.send(y, 0)
    return True


def test_a_rank_that_closes_leaves_its_messages_and_is_named(ranks):
    assert ranks.run(closing, 2) == [True, True]


def interrupted(comm):
    from _thread import interrupt_main

    y = np.empty(3)
    threading.Timer(0.3, interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        comm.recv(y, 0, timeout=30)
    comm.send(np.ones(3), 0)
    comm.recv(y, 0)  # nothing is broken
    return y.tolist()


def test_ctrl_c_ends_a_receive_and_breaks_nothing(processes):
    assert processes.run(interrupted, 1) == [[1.0, 1.0, 1.0]]
