"""The C library, driven by cffi from the installed header itself: codes, communicators, memory, messages, collectives.

Dispatch and combine are in test_c_moe.py, errors in test_c_errors.py, building against it in test_c_build.py.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import truth
from c_api import (
    DEFAULT,
    NULL,
    CError,
    as_type,
    at,
    created,
    declarations,
    ffi,
    functions,
    joined,
    lib,
    made,
    message,
    must,
    text,
)
from ranks import mark, marked, wait_until

import xccl
from xccl import _core

# --- The header and the library as such ---


def upper(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def test_the_declarations_hold_no_preprocessor():
    assert not re.search(r"^\s*#", declarations(), re.MULTILINE)


def test_every_status_has_its_code_its_name_and_its_text():
    for number, (name, meaning) in enumerate(_core.status_list()):
        c_name = f"XCCL_{upper(name)}"
        assert getattr(lib, c_name) == number
        assert text(lib.xccl_status_name(number)) == c_name
        assert text(lib.xccl_status_text(number)) == meaning


def test_the_header_has_no_other_codes_but_pending():
    codes = dict(ffi.typeof("xccl_status").relements)
    assert codes.pop("XCCL_PENDING") == -1
    assert set(codes.values()) == set(range(len(_core.status_list())))
    assert text(lib.xccl_status_name(lib.XCCL_PENDING)) == "XCCL_PENDING"
    assert text(lib.xccl_status_text(lib.XCCL_PENDING))
    assert text(lib.xccl_status_name(77)) == text(lib.xccl_status_text(77)) == "unknown"


def test_the_version_is_that_of_the_package():
    assert text(lib.xccl_version()) == xccl.__version__
    major, minor, patch = (int(part) for part in xccl.__version__.split(".")[:3])
    assert lib.xccl_version_at_least(major, minor, patch)
    assert lib.xccl_version_at_least(major, minor - 1, patch + 1)
    assert not lib.xccl_version_at_least(major, minor, patch + 1)
    assert not lib.xccl_version_at_least(major, minor + 1, 0)
    assert not lib.xccl_version_at_least(major + 1, 0, 0)


def test_these_tests_call_every_function_of_the_header():
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("*c_*.py"))
    called = set(re.findall(r"lib\.(xccl_\w+)\b", here))
    assert called == functions()


# --- Communicators and memory ---


def look_around(part):
    job = ffi.new("char[]", part.job.encode())
    with joined(part, timeout=7.5) as comm:
        seen = (
            lib.xccl_comm_rank(comm),
            lib.xccl_comm_size(comm),
            text(lib.xccl_comm_provider(comm)),
            text(lib.xccl_comm_job(comm)) == ffi.string(job).decode(),
            lib.xccl_comm_timeout(comm),
            lib.xccl_comm_is_closed(comm),
        )
        before = lib.xccl_comm_committed_bytes(comm)
        memory = made("void", lib.xccl_memory_alloc, comm, 1 << 20)
        assert int(ffi.cast("uintptr_t", memory)) % 64 == 0
        assert lib.xccl_comm_committed_bytes(comm) >= before + (1 << 20)
        ffi.memmove(memory, b"\x05" * (1 << 20), 1 << 20)
        must(lib.xccl_comm_close(comm))
        must(lib.xccl_comm_close(comm))
        assert lib.xccl_comm_is_closed(comm)
        assert ffi.buffer(memory, 4)[:] == b"\x05\x05\x05\x05"
        must(lib.xccl_memory_free(comm, memory))
        must(lib.xccl_memory_free(comm, NULL))
        with pytest.raises(CError, match="not allocated with this communicator"):
            must(lib.xccl_memory_free(comm, memory))
    return seen


def test_a_communicator_knows_itself_and_its_memory_outlives_its_closing(either_provider):
    found = either_provider.run(look_around, 3, joins=False)
    assert found == [(rank, 3, either_provider.provider, True, 7.5, 0) for rank in range(3)]


def leave_memory(part):
    with joined(part) as comm:
        made(
            "void", lib.xccl_memory_alloc, comm, 1 << 20
        )  # destroy frees it: the fixture would see it otherwise


def test_destroying_a_communicator_frees_what_was_allocated_with_it(threads):
    threads.run(leave_memory, 2, joins=False)


def split_apart(part):
    with joined(part) as comm:
        sub = made("xccl_comm", lib.xccl_comm_split, comm, part.rank % 2, -part.rank, DEFAULT)
        none = made("xccl_comm", lib.xccl_comm_split, comm, -1, 0, DEFAULT)
        mine, got = np.array([part.rank]), np.zeros(lib.xccl_comm_size(sub), np.int64)
        must(lib.xccl_comm_all_gather(sub, at(mine), 8, DEFAULT, at(got)))
        where = lib.xccl_comm_rank(sub)
        lib.xccl_comm_destroy(sub)
        return none == NULL, where, got.tolist()


def test_split_groups_by_color_and_orders_by_key(either_provider):
    found = either_provider.run(split_apart, 5, joins=False)
    groups = {0: [4, 2, 0], 1: [3, 1]}
    assert found == [(True, groups[r % 2].index(r), groups[r % 2]) for r in range(5)]


def go_on_without(part):
    with joined(part) as comm:
        if part.rank == 1:
            must(lib.xccl_comm_abort(comm, b"enough"))
            refused = lib.xccl_comm_shrink(comm, DEFAULT, ffi.new("xccl_comm **"))
            return refused, text(lib.xccl_error_message())
        assert lib.xccl_comm_barrier(comm, DEFAULT) == lib.XCCL_PEER_FAILED
        survivors = made("xccl_comm", lib.xccl_comm_shrink, comm, DEFAULT)
        assert lib.xccl_comm_barrier(comm, DEFAULT) == lib.XCCL_PEER_FAILED
        mine, got = np.array([part.rank]), np.zeros(lib.xccl_comm_size(survivors), np.int64)
        must(lib.xccl_comm_all_gather(survivors, at(mine), 8, DEFAULT, at(got)))
        where = lib.xccl_comm_rank(survivors)
        lib.xccl_comm_destroy(survivors)
        return where, got.tolist()


def test_survivors_shrink_a_communicator(either_provider):
    first, (refused, why), *others = either_provider.run(go_on_without, 4, joins=False)
    assert [first, *others] == [(0, [0, 2, 3]), (1, [0, 2, 3]), (2, [0, 2, 3])]
    assert refused == lib.XCCL_CLOSED
    assert why.startswith("xccl_comm_shrink: ")
    assert "has aborted the communicator" in why


def shrink_alone(part, folder):
    with joined(part) as comm:
        if part.rank == 0:
            status = lib.xccl_comm_shrink(comm, 0.05, ffi.new("xccl_comm **"))
            told = (status, text(lib.xccl_error_operation()), text(lib.xccl_error_phase()))
            mark(folder, "late")
        else:
            wait_until(lambda: marked(folder, "late"), "rank 0 has given up")
            told = None
        lib.xccl_comm_destroy(made("xccl_comm", lib.xccl_comm_shrink, comm, DEFAULT))
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        return told


def test_shrink_can_be_called_again_when_ranks_were_late(either_provider, tmp_path):
    told = either_provider.run(shrink_alone, 2, tmp_path, joins=False)[0]
    assert told == (lib.XCCL_TIMEOUT, "shrink", "meeting")


def wait_and_tell(part):
    with joined(part) as comm:
        waits = ffi.new("xccl_wait[]", part.size * part.size)
        if part.rank == 1:
            time.sleep(0.5)
        for _ in range(2):
            must(lib.xccl_comm_barrier(comm, DEFAULT))
        must(lib.xccl_comm_wait_stats(comm, waits))
        told = [(one.count, one.total, one.longest) for one in waits]
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        must(lib.xccl_comm_reset_wait_stats(comm))
        must(lib.xccl_comm_wait_stats(comm, waits))
        assert sum(waits[part.rank * part.size + other].count for other in range(part.size)) == 0
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        with pytest.raises(CError, match="waits is NULL"):
            must(lib.xccl_comm_wait_stats(comm, NULL))
        return told


def test_wait_statistics_tell_who_was_late(either_provider):
    for told in either_provider.run(wait_and_tell, 3, joins=False):
        for waiter in (0, 2):
            count, total, longest = told[waiter * 3 + 1]
            assert count >= 1
            assert total >= longest >= 0.3
        assert told[1 * 3 + 0][1] < 0.3


def outlive(part):
    comm = created(part)
    sub = made("xccl_comm", lib.xccl_comm_split, comm, 0, part.rank, DEFAULT)
    lib.xccl_comm_destroy(comm)
    must(lib.xccl_comm_barrier(sub, DEFAULT))
    lib.xccl_comm_destroy(sub)


def test_a_group_may_outlive_what_it_was_split_from(either_provider):
    either_provider.run(outlive, 3, joins=False)


# --- Messages ---


def talk(part):
    """Everything about messages, in a ring."""
    right, left = (part.rank + 1) % part.size, (part.rank - 1) % part.size
    info = ffi.new("xccl_message *")
    got = np.zeros(4, np.int32)
    mine = np.full(4, part.rank, np.int32)
    theirs = [left] * 4
    with joined(part) as comm:
        must(lib.xccl_comm_send(comm, at(mine), 16, right, 3, DEFAULT))
        must(lib.xccl_comm_recv(comm, left, 3, DEFAULT, at(got), 16, info))
        assert (message(info), got.tolist()) == ((left, 3, 16), theirs)

        must(
            lib.xccl_comm_sendrecv(
                comm, at(mine), 8, right, 4, left, lib.XCCL_ANY_TAG, DEFAULT, at(got), 16, info
            )
        )
        assert message(info) == (left, 4, 8)

        receive = made("xccl_request", lib.xccl_comm_irecv, comm, left, 5, at(got), 16)
        assert lib.xccl_request_test(receive, info) == lib.XCCL_PENDING
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        send = made("xccl_request", lib.xccl_comm_isend, comm, at(mine), 12, right, 5)
        must(lib.xccl_request_wait(receive, DEFAULT, info))
        must(lib.xccl_request_wait(receive, DEFAULT, NULL))
        must(lib.xccl_request_wait(send, DEFAULT, NULL))
        assert lib.xccl_request_test(receive, info) == lib.XCCL_OK
        assert message(info) == (left, 5, 12)
        lib.xccl_request_destroy(receive)
        lib.xccl_request_destroy(send)

        assert lib.xccl_comm_iprobe(comm, left, 6, info) == lib.XCCL_PENDING
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        must(lib.xccl_comm_send(comm, NULL, 0, right, 6, DEFAULT))
        must(lib.xccl_comm_probe(comm, left, 6, DEFAULT, info))
        assert message(info) == (left, 6, 0)
        assert lib.xccl_comm_iprobe(comm, lib.XCCL_ANY_SOURCE, 6, info) == lib.XCCL_OK
        must(lib.xccl_comm_recv(comm, lib.XCCL_ANY_SOURCE, 6, DEFAULT, NULL, 0, NULL))

        must(lib.xccl_comm_send(comm, at(mine), 16, right, 8, DEFAULT))
        with pytest.raises(CError) as caught:
            must(lib.xccl_comm_recv(comm, left, 8, DEFAULT, at(got), 15, NULL))
        assert caught.value.status == "XCCL_TRUNCATED"
        assert "16" in caught.value.message
        assert "15" in caught.value.message
        must(lib.xccl_comm_recv(comm, left, 8, DEFAULT, at(got), 16, NULL))
        assert got.tolist() == theirs


def test_messages_of_every_kind(ranks):
    ranks.run(talk, 3, joins=False)


def change_ones_mind(part):
    withdrawn, got = ffi.new("int *"), np.zeros(100_000, np.uint8)
    with joined(part) as comm:
        told = []
        for size in (40, got.size):  # buffered, and so sent; announced
            send = made("xccl_request", lib.xccl_comm_isend, comm, at(got), size, part.rank, 1)
            must(lib.xccl_request_cancel(send, withdrawn))
            told.append((withdrawn[0], lib.xccl_request_wait(send, DEFAULT, NULL)))
            lib.xccl_request_destroy(send)
        receive = made("xccl_request", lib.xccl_comm_irecv, comm, part.rank, 2, at(got), 4)
        must(lib.xccl_request_cancel(receive, withdrawn))
        told.append((withdrawn[0], lib.xccl_request_test(receive, NULL)))
        lib.xccl_request_destroy(receive)
        must(lib.xccl_comm_recv(comm, part.rank, lib.XCCL_ANY_TAG, DEFAULT, at(got), 40, NULL))
        info = ffi.new("xccl_message *")
        assert lib.xccl_comm_iprobe(comm, part.rank, lib.XCCL_ANY_TAG, info) == lib.XCCL_PENDING
        return told


def test_requests_are_cancelled_while_unmatched(ranks):
    told = ranks.run(change_ones_mind, 1, joins=False)[0]
    assert told == [(0, lib.XCCL_OK), (1, lib.XCCL_CLOSED), (1, lib.XCCL_CLOSED)]


def half_a_sendrecv(part):
    """Rank 0 is answered late. Gives what it is told, and how many messages rank 1 finds."""
    got, info = np.zeros(1 << 20, np.uint8), ffi.new("xccl_message *")
    with joined(part) as comm:
        told = []
        for size in (4, got.size):  # buffered, and not: the second is not sent until rank 1 asks for it
            if part.rank == 0:
                arguments = (at(got), size, 1, 1, 1, 2, 0.05, at(got), 4, info)
                assert lib.xccl_comm_sendrecv(comm, *arguments) == lib.XCCL_TIMEOUT
                told.append(text(lib.xccl_error_operation()))
                must(lib.xccl_comm_barrier(comm, DEFAULT))
            else:
                must(lib.xccl_comm_barrier(comm, DEFAULT))
                found = 0
                while lib.xccl_comm_iprobe(comm, 0, 1, info) == lib.XCCL_OK:
                    must(lib.xccl_comm_recv(comm, 0, 1, DEFAULT, at(got), got.size, info))
                    found += 1
                told.append(found)
                must(lib.xccl_comm_send(comm, at(got), 4, 0, 2, DEFAULT))
            if part.rank == 0:
                must(lib.xccl_comm_recv(comm, 1, 2, DEFAULT, at(got), 4, info))
        return told


def test_a_sendrecv_that_is_late_tells_whether_it_has_sent(ranks):
    assert ranks.run(half_a_sendrecv, 2, joins=False) == [["sendrecv", "send"], [1, 0]]


def lend(part, size):
    with joined(part) as comm:
        if part.rank == 0:
            memory = made("void", lib.xccl_memory_alloc, comm, size)
            ffi.memmove(memory, b"\x07" * size, size)
            request = made("xccl_request", lib.xccl_comm_isend, comm, memory, size, 1, 2)
            must(lib.xccl_request_wait(request, DEFAULT, NULL))
            lib.xccl_request_destroy(request)
            return must(lib.xccl_memory_free(comm, memory))
        view = made("xccl_view", lib.xccl_view_borrow, comm, 0, lib.XCCL_ANY_TAG, DEFAULT)
        info = lib.xccl_view_message(view)
        assert message(info) == (0, 2, size)
        assert ffi.buffer(lib.xccl_view_data(view), size)[:] == b"\x07" * size
        lib.xccl_view_release(view)


@pytest.mark.parametrize("size", [16, 4096, 1 << 21])
def test_a_message_is_borrowed_where_it_lies(ranks, size):
    ranks.run(lend, 2, size, joins=False)


# --- Collectives ---

TYPES = {"float32": lib.XCCL_FLOAT32, "float16": lib.XCCL_FLOAT16, "bfloat16": lib.XCCL_BFLOAT16}


def gather_and_exchange(part):
    size, rank = part.size, part.rank
    with joined(part) as comm:
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        data = np.full(5, 40 + rank)
        must(lib.xccl_comm_broadcast(comm, at(data), data.nbytes, size - 1, DEFAULT))
        assert data.tolist() == [40 + size - 1] * 5

        mine = np.array([rank, 10 * rank])
        all_of = np.zeros((size, 2), np.int64)
        must(lib.xccl_comm_all_gather(comm, at(mine), 16, DEFAULT, at(all_of)))
        assert all_of.tolist() == [[r, 10 * r] for r in range(size)]

        pieces, exchanged = 100 * rank + np.arange(size), np.zeros(size, np.int64)
        must(lib.xccl_comm_all_to_all(comm, at(pieces), 8, DEFAULT, at(exchanged)))
        assert exchanged.tolist() == [100 * r + rank for r in range(size)]

        rows, counts = np.full(rank, rank), np.zeros(size, np.uint64)
        room = np.zeros(size * size, np.int64)
        must(
            lib.xccl_comm_all_gather_v(
                comm, at(rows), rank, 8, DEFAULT, at(room), room.size, as_type("uint64_t", counts)
            )
        )
        assert counts.tolist() == list(range(size))
        assert room[: int(counts.sum())].tolist() == [r for r in range(size) for _ in range(r)]

        send = np.array([(rank + r) % 3 for r in range(size)], np.uint64)
        rows = np.repeat(10 * rank + np.arange(size), send.astype(int))
        must(
            lib.xccl_comm_all_to_all_v(
                comm,
                at(rows),
                as_type("uint64_t", send),
                8,
                DEFAULT,
                at(room),
                room.size,
                as_type("uint64_t", counts),
            )
        )
        assert counts.tolist() == [(rank + r) % 3 for r in range(size)]
        assert room[: int(counts.sum())].tolist() == [
            10 * r + rank for r in range(size) for _ in range((rank + r) % 3)
        ]


def test_bytes_and_rows_are_gathered_and_exchanged(ranks):
    ranks.run(gather_and_exchange, 4, joins=False)


def too_small(part):
    with joined(part) as comm:
        rows, room, counts = np.full(3, part.rank), np.zeros(6, np.int64), np.zeros(2, np.uint64)
        capacity = room.size if part.rank == 0 else 5
        status = lib.xccl_comm_all_gather_v(
            comm, at(rows), 3, 8, DEFAULT, at(room), capacity, as_type("uint64_t", counts)
        )
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        assert counts.tolist() == [3, 3]
        return text(lib.xccl_status_name(status))


def test_rows_that_do_not_fit_are_truncated_for_that_rank_only(either_provider):
    assert either_provider.run(too_small, 2, joins=False) == ["XCCL_OK", "XCCL_TRUNCATED"]


def reduce(part, dtype):
    numbers = np.arange(12).reshape(part.size, 12 // part.size) + part.rank
    mine = numbers.astype(truth.DTYPES.get(dtype, np.int64))
    kind = TYPES.get(dtype, lib.XCCL_INT64)
    total = sum(np.arange(12) + r for r in range(part.size))
    with joined(part) as comm:
        out = np.zeros_like(mine)
        must(lib.xccl_comm_all_reduce(comm, at(mine), 12, kind, lib.XCCL_SUM, DEFAULT, at(out)))
        assert out.astype(int).ravel().tolist() == total.tolist()
        must(lib.xccl_comm_all_reduce(comm, at(mine), 12, kind, lib.XCCL_MAX, DEFAULT, at(out)))
        assert out.astype(int).ravel().tolist() == (np.arange(12) + part.size - 1).tolist()
        block = np.zeros_like(mine[0])
        must(lib.xccl_comm_reduce_scatter(comm, at(mine), block.size, kind, lib.XCCL_SUM, DEFAULT, at(block)))
        assert block.astype(int).tolist() == total.reshape(part.size, -1)[part.rank].tolist()
        counts = np.array([0, 5, 7], np.uint64)
        some = np.zeros(int(counts[part.rank]), mine.dtype)
        must(
            lib.xccl_comm_reduce_scatter_v(
                comm, at(mine), as_type("uint64_t", counts), kind, lib.XCCL_SUM, DEFAULT, at(some)
            )
        )
        assert some.astype(int).tolist() == np.split(total, [0, 5])[part.rank].tolist()


@pytest.mark.parametrize("dtype", [*TYPES, "int64"])
def test_elements_are_reduced(ranks, dtype):
    ranks.run(reduce, 3, dtype, joins=False)
