"""The C library's errors: every code and its fields, what an error leaves as it was; forks; structs of other ages."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from c_api import (
    DEFAULT,
    NULL,
    CError,
    at,
    config,
    created,
    ep_config,
    ffi,
    functions,
    joined,
    lib,
    made,
    message,
    must,
    text,
)
from ranks import Part

FOLDERS = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS)}  # of a program that imports c_api


@pytest.fixture
def alone():
    """A communicator of one rank, in this process."""
    with joined(Part(0, 1, f"alone-{os.getpid()}", "local", joined, (), {}, False)) as comm:
        yield comm


WORDS = ffi.new("uint64_t[8]", [1] * 8)
INVALID = {
    "a NULL communicator": (lambda c: lib.xccl_comm_barrier(NULL, DEFAULT), "comm is NULL"),
    "a NULL output": (lambda c: lib.xccl_comm_create(NULL, NULL), "comm_out is NULL"),
    "nowhere to put the survivors": (
        lambda c: lib.xccl_comm_shrink(c, DEFAULT, NULL),
        "survivors_out is NULL",
    ),
    "shrink without end": (lambda c: lib.xccl_comm_shrink(c, 0, ffi.new("xccl_comm **")), "timeout=0"),
    "no request to cancel": (lambda c: lib.xccl_request_cancel(NULL, NULL), "request is NULL"),
    "NULL data": (lambda c: lib.xccl_comm_send(c, NULL, 8, 0, 0, DEFAULT), "data is NULL"),
    "no such rank": (lambda c: lib.xccl_comm_send(c, NULL, 0, 3, 0, DEFAULT), "3"),
    "a negative tag": (lambda c: lib.xccl_comm_send(c, NULL, 0, 0, -4, DEFAULT), "-4"),
    "a timeout of 0": (lambda c: lib.xccl_comm_barrier(c, 0), "timeout=0"),
    "an endless timeout": (lambda c: lib.xccl_comm_barrier(c, float("inf")), "timeout=inf"),
    "a timeout that is no number": (lambda c: lib.xccl_comm_barrier(c, float("nan")), "timeout="),
    "no such type": (
        lambda c: lib.xccl_comm_all_reduce(c, NULL, 0, 9, lib.XCCL_SUM, DEFAULT, NULL),
        "dtype is 9",
    ),
    "a type that is not reduced": (
        lambda c: lib.xccl_comm_all_reduce(c, NULL, 0, lib.XCCL_INT32, lib.XCCL_SUM, DEFAULT, NULL),
        "dtype is 5",
    ),
    "no such operation": (lambda c: lib.xccl_comm_all_reduce(c, NULL, 0, 1, 9, DEFAULT, NULL), "op is 9"),
    "a misaligned array": (
        lambda c: lib.xccl_comm_all_reduce(c, ffi.cast("void *", 5), 1, 1, 1, DEFAULT, ffi.cast("void *", 8)),
        "mine is misaligned",
    ),
    "gathered rows over the given ones": (
        lambda c: lib.xccl_comm_all_gather_v(c, WORDS, 2, 8, DEFAULT, WORDS + 1, 2, WORDS + 6),
        "the output overlaps the input",
    ),
    "exchanged rows over the given ones": (
        lambda c: lib.xccl_comm_all_to_all_v(c, WORDS, WORDS + 4, 8, DEFAULT, WORDS, 2, WORDS + 6),
        "the output overlaps the input",
    ),
    "the counts that come over those that are given": (
        lambda c: lib.xccl_comm_all_to_all_v(c, WORDS, WORDS + 4, 8, DEFAULT, WORDS + 2, 2, WORDS + 4),
        "the output overlaps the input",
    ),
    "no such root": (lambda c: lib.xccl_comm_broadcast(c, NULL, 0, 1, DEFAULT), "root"),
    "no config": (lambda c: lib.xccl_ep_create(c, NULL, DEFAULT, ffi.new("xccl_ep **")), "config is NULL"),
    "a config without its _init": (
        lambda c: lib.xccl_ep_create(c, ffi.new("xccl_ep_config *"), DEFAULT, ffi.new("xccl_ep **")),
        "size is 0",
    ),
    "an impossible shape": (
        lambda c: lib.xccl_ep_create(c, ep_config(hidden=0), DEFAULT, ffi.new("xccl_ep **")),
        "hidden=0",
    ),
    "rows of a type that is not for rows": (
        lambda c: lib.xccl_ep_create(c, ep_config(dtype=lib.XCCL_INT64), DEFAULT, ffi.new("xccl_ep **")),
        "dtype is 4",
    ),
    "a quantisation that there is not": (
        lambda c: lib.xccl_ep_create(c, ep_config(combine_quant=7), DEFAULT, ffi.new("xccl_ep **")),
        "combine_quant is 7",
    ),
    "rank without rank_count": (
        lambda c: lib.xccl_comm_create(config("xccl_comm_config", rank=0), ffi.new("xccl_comm **")),
        "rank_count",
    ),
    "several ranks without a job": (
        lambda c: lib.xccl_comm_create(
            config("xccl_comm_config", rank=0, rank_count=2), ffi.new("xccl_comm **")
        ),
        "job",
    ),
    "a negative deadline": (
        lambda c: lib.xccl_comm_create(config("xccl_comm_config", timeout=-3), ffi.new("xccl_comm **")),
        "config->timeout=-3",
    ),
    "a plan for no ranks": (
        lambda c: lib.xccl_plan_create(ep_config(), config("xccl_plan_load"), ffi.new("xccl_plan **")),
        "rank_count=0",
    ),
}


@pytest.mark.parametrize("wrong", INVALID)
def test_a_wrong_argument_is_named_and_breaks_nothing(alone, wrong):
    call, named = INVALID[wrong]
    with pytest.raises(CError) as caught:
        must(call(alone))
    assert caught.value.status == "XCCL_INVALID_ARGUMENT"
    assert named in caught.value.message
    must(lib.xccl_comm_barrier(alone, DEFAULT))


def test_what_the_core_refuses_it_calls_by_no_name_of_another_language(alone):
    ep = made("xccl_ep", lib.xccl_ep_create, alone, ep_config(hidden=1, dtype=lib.XCCL_FLOAT32), DEFAULT)
    x, weights = np.ones((1, 1), np.float32), ffi.new("float[2]", [1, 1])
    nine = ffi.new("int32_t[2]", [0, 9])
    out = ffi.new("void **")
    dispatch = lib.xccl_ep_dispatch, ep, at(x), 1
    d = made("xccl_result", *dispatch, ffi.new("int32_t[2]", [0, 1]), lib.XCCL_INT32, weights, DEFAULT)
    rows, routing = lib.xccl_result_x(d), lib.xccl_result_routing(d)
    refused = {
        "destination is -1: expected 0 to 0": lambda: lib.xccl_comm_send(alone, NULL, 0, -1, 0, DEFAULT),
        "source is -2: expected 0 to 0, or -1 for any": (
            lambda: lib.xccl_comm_recv(alone, -2, 0, DEFAULT, NULL, 0, NULL)
        ),
        "tag=-2: expected 0 to 2147483647, or -1 for any": (
            lambda: lib.xccl_comm_recv(alone, 0, -2, DEFAULT, NULL, 0, NULL)
        ),
        "an input buffer for 10 tokens: expected 0 to max_tokens=9": (
            lambda: lib.xccl_ep_input_buffer(ep, 10, DEFAULT, out)
        ),
        "token 0 names expert 9 in slot 1: expected -1 (no expert) to 6": (
            lambda: made("xccl_result", *dispatch, nine, lib.XCCL_INT32, weights, DEFAULT)
        ),
        "x has 0 tokens, but the routing was made for 1": (
            lambda: made("xccl_result", lib.xccl_ep_dispatch_again, ep, NULL, 0, routing, DEFAULT)
        ),
        "the output lies in the rows of a result": (
            lambda: lib.xccl_ep_combine(ep, at(np.ones((2, 1), np.float32)), d, NULL, DEFAULT, rows)
        ),
        "this result has been released": lambda: (
            lib.xccl_result_release(d) or lib.xccl_result_output_buffer(d, DEFAULT, out)
        ),
        "a job of 0 ranks": lambda: lib.xccl_comm_create(
            config("xccl_comm_config", rank=0, rank_count=0), ffi.new("xccl_comm **")
        ),
    }
    for named, call in refused.items():
        with pytest.raises(CError) as caught:
            must(call())
        assert caught.value.status == "XCCL_INVALID_ARGUMENT"
        assert named in caught.value.message
    lib.xccl_result_destroy(d)
    lib.xccl_ep_destroy(ep)


def test_getters_of_nothing_say_so():
    count = ffi.new("size_t *", 5)
    assert (lib.xccl_comm_rank(NULL), lib.xccl_comm_size(NULL), lib.xccl_comm_timeout(NULL)) == (-1, -1, -1)
    assert lib.xccl_comm_job(NULL) == lib.xccl_comm_provider(NULL) == lib.xccl_view_data(NULL) == NULL
    assert lib.xccl_comm_committed_bytes(NULL) == lib.xccl_comm_is_closed(NULL) == 0
    assert message(lib.xccl_view_message(NULL)) == (-1, -1, 0)
    assert lib.xccl_ep_local_experts(NULL, count) == NULL
    assert count[0] == 0
    assert lib.xccl_result_routing(NULL) == lib.xccl_result_x(NULL) == lib.xccl_result_counts(NULL) == NULL
    for destroy in (
        lib.xccl_comm_destroy,
        lib.xccl_request_destroy,
        lib.xccl_view_release,
        lib.xccl_ep_destroy,
        lib.xccl_result_release,
        lib.xccl_result_destroy,
        lib.xccl_routing_destroy,
        lib.xccl_plan_destroy,
    ):
        destroy(NULL)


def nothing(kind):
    """What stands for nothing as an argument of that type."""
    return NULL if kind.kind == "pointer" else 0


def with_status():
    """Functions that come to a status, with the types of their arguments."""
    for name in sorted(functions()):
        function = getattr(lib, name)
        kind = ffi.typeof(function)
        if kind.result.cname == "xccl_status" and kind.args:
            yield name, function, kind.args


def test_every_function_can_be_called_with_nothing():
    for name in sorted(functions()):
        function = getattr(lib, name)
        function(*map(nothing, ffi.typeof(function).args))
    for name, function, kinds in with_status():
        assert function(*map(nothing, kinds)) == lib.XCCL_INVALID_ARGUMENT, name
        assert re.match(rf"{name}: (\w+ is (NULL|0)|timeout=0)", text(lib.xccl_error_message()))


def test_every_function_on_a_communicator_names_what_is_missing(alone):
    """Only the handle is right. What needs no more than that works; the rest is refused, and breaks nothing."""
    works = {"xccl_comm_reset_wait_stats", "xccl_memory_free"}
    ends = {"xccl_comm_close", "xccl_comm_abort"}
    tried = 0
    for name, function, kinds in with_status():
        if kinds[0].cname != "xccl_comm *" or name in ends:
            continue
        status = function(alone, *map(nothing, kinds[1:]))
        assert status == (lib.XCCL_OK if name in works else lib.XCCL_INVALID_ARGUMENT), name
        must(lib.xccl_comm_barrier(alone, DEFAULT))
        tried += 1
    assert tried > 20


def test_every_function_of_an_xccl_ep_names_what_is_missing(alone):
    ep = made("xccl_ep", lib.xccl_ep_create, alone, ep_config(), DEFAULT)
    for name, function, kinds in with_status():
        if kinds[0].cname == "xccl_ep *" and name != "xccl_ep_close":
            assert function(ep, *map(nothing, kinds[1:])) == lib.XCCL_INVALID_ARGUMENT, name
    lib.xccl_result_destroy(
        made("xccl_result", lib.xccl_ep_dispatch, ep, NULL, 0, NULL, lib.XCCL_INT32, NULL, DEFAULT)
    )
    lib.xccl_ep_destroy(ep)


def test_an_output_is_set_on_success_only():
    out = ffi.new("xccl_comm **", ffi.cast("xccl_comm *", 64))
    job = ffi.new("char[]", b"x")
    bad = config("xccl_comm_config", rank=2, rank_count=2, job=job)
    assert lib.xccl_comm_create(bad, out) == lib.XCCL_INVALID_ARGUMENT
    assert int(ffi.cast("uintptr_t", out[0])) == 64


REFUSED_FIRST = """
import os
from c_api import DEFAULT, config, ffi, lib, made, must
bogus = ffi.new("char[]", b"bogus")
if os.environ["XCCL_RANK"] == "0":
    for wrong in ({"provider": bogus}, {"timeout": float("nan")}, {"startup_timeout": -1}):
        out = ffi.new("xccl_comm **")
        assert lib.xccl_comm_create(config("xccl_comm_config", **wrong), out) == lib.XCCL_INVALID_ARGUMENT
for _ in range(2):
    comm = made("xccl_comm", lib.xccl_comm_create, config("xccl_comm_config", startup_timeout=20))
    must(lib.xccl_comm_barrier(comm, DEFAULT))
    lib.xccl_comm_destroy(comm)
"""


def test_a_call_that_was_refused_is_corrected_and_made_again(tmp_path):
    (tmp_path / "program.py").write_text(REFUSED_FIRST)
    command = [sys.executable, "-m", "xccl", "run", "-n", "2", "program.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, env=ENVIRON)


def test_the_error_is_the_thread_s_own_and_success_does_not_touch_it(alone):
    assert lib.xccl_comm_barrier(alone, 0) == lib.XCCL_INVALID_ARGUMENT
    must(lib.xccl_comm_barrier(alone, DEFAULT))
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(CError.last()))
    thread.start()
    thread.join()
    assert elsewhere[0].args == ("XCCL_OK", "", "", 0, "", [])
    assert CError.last().message.startswith("xccl_comm_barrier: timeout=0")


def test_memory_that_cannot_be_had_is_refused(alone):
    with pytest.raises(CError) as caught:
        made("void", lib.xccl_memory_alloc, alone, 1 << 62)
    assert caught.value.status == "XCCL_OUT_OF_MEMORY"
    with pytest.raises(CError) as caught:
        made("void", lib.xccl_memory_alloc, alone, 1 << 50)
    assert caught.value.status == "XCCL_OUT_OF_MEMORY"


def too_late(part):
    with joined(part) as comm:
        if part.rank == 1:
            return must(lib.xccl_comm_barrier(comm, DEFAULT))
        got = np.zeros(1, np.int64)
        for _ in range(2):
            with pytest.raises(CError) as caught:
                must(lib.xccl_comm_recv(comm, 1, 9, 0.05, at(got), 8, NULL))
        must(lib.xccl_comm_barrier(comm, DEFAULT))
        return caught.value.args


def test_a_message_that_does_not_come_is_a_timeout_and_may_be_waited_for_again(either_provider):
    status, said, op, seq, _, ranks = either_provider.run(too_late, 2, joins=False)[0]
    assert (status, op, ranks) == ("XCCL_TIMEOUT", "recv", [1])
    assert seq >= 1
    assert said.startswith("xccl_comm_recv: recv #")
    assert "rank 1" in said


def come_late(part):
    with joined(part) as comm:
        with pytest.raises(CError) as caught:
            must(
                lib.xccl_comm_barrier(comm, 0.1)
                if part.rank == 0
                else lib.xccl_comm_recv(comm, 0, 9, DEFAULT, NULL, 0, NULL)
            )
        with pytest.raises(CError, match="has failed before"):
            must(lib.xccl_comm_barrier(comm, DEFAULT))
        return caught.value.args


def test_a_collective_that_times_out_ends_the_communicator_and_says_who_is_late(either_provider):
    late, failed = either_provider.run(come_late, 2, joins=False)
    assert (late[0], late[2:]) == ("XCCL_TIMEOUT", ("barrier", 1, "waiting", [1]))
    assert failed[0] == "XCCL_PEER_FAILED"
    assert failed[5] == [0]
    assert "no answer from rank 1" in failed[1]


def disagree(part):
    with joined(part) as comm:
        mine = np.zeros(4, np.float32)
        with pytest.raises(CError) as caught:
            must(lib.xccl_comm_all_reduce(comm, at(mine), 3 + part.rank, 1, lib.XCCL_SUM, DEFAULT, at(mine)))
        return caught.value.args


def test_arguments_that_disagree_are_a_mismatch_on_both_sides(either_provider):
    for rank, error in enumerate(either_provider.run(disagree, 2, joins=False)):
        assert (error[0], error[2], error[5]) == ("XCCL_MISMATCH", "all_reduce", [1 - rank])


def die(part):
    comm = created(part)
    if part.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with pytest.raises(CError) as caught:
            must(lib.xccl_comm_barrier(comm, DEFAULT))
        return caught.value.args
    finally:
        lib.xccl_comm_destroy(comm)


def test_a_death_is_named(processes):
    outcomes = processes.outcomes(die, 3, joins=False)
    assert outcomes[1].exitcode == -signal.SIGKILL
    for rank in (0, 2):
        status, _, op, _, _, ranks = outcomes[rank].value
        assert (status, op, ranks) == ("XCCL_PEER_LOST", "barrier", [1])


def give_up(part):
    with joined(part) as comm:
        if part.rank == 0:
            must(lib.xccl_comm_abort(comm, b"the disk is full"))
        with pytest.raises(CError) as caught:
            must(lib.xccl_comm_barrier(comm, DEFAULT))
        return caught.value.args


def test_an_abort_reaches_the_others_with_its_reason(either_provider):
    for rank, error in enumerate(either_provider.run(give_up, 2, joins=False)):
        assert error[0] == ("XCCL_PEER_FAILED" if rank else "XCCL_FAILURE")
        assert "the disk is full" in error[1]


def need_a_closed_rank(part):
    with joined(part) as comm:
        if part.rank == 0:
            must(lib.xccl_comm_close(comm))
        with pytest.raises(CError) as caught:
            must(lib.xccl_comm_barrier(comm, DEFAULT))
        return caught.value.args


def test_closed_names_who_is_needed(either_provider):
    own, other = either_provider.run(need_a_closed_rank, 2, joins=False)
    assert own[0] == other[0] == "XCCL_CLOSED"
    assert other[5] == [0]


def exhaust(part):
    with joined(part) as comm:
        ep = made("xccl_ep", lib.xccl_ep_create, comm, ep_config(results=1), DEFAULT)
        arguments = (ep, NULL, 0, NULL, lib.XCCL_INT32, NULL, DEFAULT)
        first = made("xccl_result", lib.xccl_ep_dispatch, *arguments)
        with pytest.raises(CError, match="results") as caught:
            made("xccl_result", lib.xccl_ep_dispatch, *arguments)
        lib.xccl_result_release(first)
        lib.xccl_result_destroy(made("xccl_result", lib.xccl_ep_dispatch, *arguments))
        lib.xccl_result_destroy(first)
        lib.xccl_ep_destroy(ep)
        return caught.value.status


def test_more_results_than_there_are_is_out_of_memory(threads):
    assert threads.run(exhaust, 2, joins=False) == ["XCCL_OUT_OF_MEMORY"] * 2


def without_descriptors(part):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(CError) as caught:
            created(part)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return caught.value.args


def test_what_the_system_refuses_is_a_failure_that_says_why(processes):
    status, said, *_ = processes.run(without_descriptors, 1, joins=False)[0]
    assert status == "XCCL_FAILURE"
    assert "Too many open files" in said


# --- Versions of structs ---


def test_a_program_with_a_newer_header_works_until_it_uses_what_is_new():
    size = ffi.sizeof("xccl_ep_config")
    memory = ffi.new("char[]", b"\xff" * (size + 16))
    newer = ffi.cast("xccl_ep_config *", memory)
    lib.xccl_ep_config_init(newer, size + 16)
    assert (newer.size, newer.results, newer.dtype) == (size + 16, 2, lib.XCCL_BFLOAT16)
    newer.num_experts, newer.hidden, newer.max_tokens, newer.topk = 4, 4, 4, 1
    load = config("xccl_plan_load", rank_count=2)
    lib.xccl_plan_destroy(made("xccl_plan", lib.xccl_plan_create, newer, load))
    memory[size + 8] = b"\x01"
    with pytest.raises(CError, match="older than the program's header"):
        made("xccl_plan", lib.xccl_plan_create, newer, load)


def test_init_writes_no_more_than_the_program_has():
    size = ffi.sizeof("xccl_comm_config")
    memory = ffi.new("char[]", b"\xee" * size)
    lib.xccl_comm_config_init(ffi.cast("xccl_comm_config *", memory), size - 8)
    assert bytes(ffi.buffer(memory, size))[-8:] == b"\xee" * 8


# --- Fork ---

FORK = """
import os
from c_api import DEFAULT, NULL, config, ep_config, ffi, lib, made, must, text
OUT = ffi.new("void **")
comm = made("xccl_comm", lib.xccl_comm_create, NULL)
memory = made("void", lib.xccl_memory_alloc, comm, 64)
ffi.memmove(memory, b"parent", 6)
send = made("xccl_request", lib.xccl_comm_isend, comm, memory, 6, 0, 1)
receive = made("xccl_request", lib.xccl_comm_irecv, comm, 0, 2, NULL, 0)
view = made("xccl_view", lib.xccl_view_borrow, comm, 0, 1, DEFAULT)
ep = made("xccl_ep", lib.xccl_ep_create, comm, ep_config(), DEFAULT)
d = made("xccl_result", lib.xccl_ep_dispatch, ep, NULL, 0, NULL, lib.XCCL_INT32, NULL, DEFAULT)

def in_the_child():
    for call in (
        lambda: lib.xccl_comm_barrier(comm, DEFAULT),
        lambda: lib.xccl_comm_split(comm, 0, 0, DEFAULT, ffi.cast("xccl_comm **", OUT)),
        lambda: lib.xccl_comm_shrink(comm, DEFAULT, ffi.cast("xccl_comm **", OUT)),
        lambda: lib.xccl_request_cancel(receive, ffi.new("int *")),
        lambda: lib.xccl_comm_send(comm, NULL, 0, 0, 1, DEFAULT),
        lambda: lib.xccl_comm_iprobe(comm, 0, 1, ffi.new("xccl_message *")),
        lambda: lib.xccl_request_test(receive, NULL),
        lambda: lib.xccl_memory_alloc(comm, 1, OUT),
        lambda: lib.xccl_ep_create(comm, ep_config(), DEFAULT, ffi.cast("xccl_ep **", OUT)),
        lambda: lib.xccl_ep_input_buffer(ep, 1, DEFAULT, OUT),
        lambda: lib.xccl_ep_combine(ep, NULL, d, NULL, DEFAULT, NULL),
        lambda: lib.xccl_ep_combine_start(ep, NULL, d, NULL, DEFAULT, NULL),
        lambda: lib.xccl_ep_combine_finish(ep, DEFAULT),
        lambda: lib.xccl_result_output_buffer(d, DEFAULT, OUT),
    ):
        assert call() == lib.XCCL_CLOSED, text(lib.xccl_error_message())
        assert "fork" in text(lib.xccl_error_message())
        assert "join again in the child" in text(lib.xccl_error_message())
    must(lib.xccl_comm_abort(comm, b"the child gives up"))
    must(lib.xccl_memory_free(comm, memory))
    must(lib.xccl_ep_close(ep))
    must(lib.xccl_comm_close(comm))
    lib.xccl_view_release(view)
    lib.xccl_result_destroy(d)
    lib.xccl_ep_destroy(ep)
    lib.xccl_request_destroy(receive)
    lib.xccl_comm_destroy(comm)
    own = made("xccl_comm", lib.xccl_comm_create, NULL)
    must(lib.xccl_comm_barrier(own, DEFAULT))
    lib.xccl_comm_destroy(own)

child = os.fork()
if child == 0:
    try:
        in_the_child()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert lib.xccl_comm_is_closed(comm) == 0
must(lib.xccl_comm_barrier(comm, DEFAULT))
assert ffi.buffer(memory, 6)[:] == ffi.buffer(lib.xccl_view_data(view), 6)[:] == b"parent"
must(lib.xccl_ep_combine(ep, lib.xccl_result_x(d), d, NULL, DEFAULT, NULL))
must(lib.xccl_comm_send(comm, NULL, 0, 0, 2, DEFAULT))
must(lib.xccl_request_wait(receive, DEFAULT, NULL))
lib.xccl_view_release(view)
must(lib.xccl_request_wait(send, DEFAULT, NULL))
lib.xccl_comm_destroy(comm)
"""


def test_a_forked_child_is_told_so_and_the_parent_is_not_disturbed():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60, env=ENVIRON)


# --- Signals ---


def test_a_signal_handler_that_returns_does_not_end_a_wait(alone):
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    started = time.monotonic()
    try:
        status = lib.xccl_comm_recv(alone, 0, 1, 0.3, NULL, 0, NULL)
        waited = time.monotonic() - started
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert status == lib.XCCL_TIMEOUT
    assert waited >= 0.3
    assert seen
