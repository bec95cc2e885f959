"""Every public function, and every way to misuse it: a typed error says what is wrong, and the next call works.

What is wrong only where two arguments or two ranks meet, and the words of the messages, is in test_bad_input.py,
test_collectives.py, test_messages.py, test_eplb.py, test_migrate.py, test_placement.py and test_failures.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_calls import FUNCTIONS, WRONG, Things, misaligned, read_only, with_gaps
from ranks import error_of, wait_until

import xccl
from xccl import eplb

# --- Is all of it there? ---

# Neither calls nor constructors of the user's: what is raised, returned or only told.
NO_CALLS = {
    *(
        name
        for name in xccl.__all__
        if isinstance(getattr(xccl, name), type) and issubclass(getattr(xccl, name), Exception)
    ),
    "ANY_SOURCE",
    "ANY_TAG",
    "Array",
    "DisaggregatedExperts",  # of more than one rank: test_disaggregated.py
    "Plan",
    "Routing",
    "Status",
    "WaitStats",
    "__version__",
    "eplb",
    "eplb.EMPTY",
    "eplb.Move",
    "eplb.Rebalanced",
    "eplb.Migration",
    "get_cmake_dir",
    "get_include",
    "get_lib",
    "get_pkgconfig_dir",  # without arguments, of no object
}
CLASSES = {
    kind.__name__: kind
    for kind in (xccl.Communicator, xccl.ExpertParallel, xccl.Dispatched, xccl.Request, xccl.View)
}


def public_calls():
    """Names of all public functions and methods."""
    found = {name for name in xccl.__all__ if name not in CLASSES} | {f"eplb.{name}" for name in eplb.__all__}
    for name, kind in CLASSES.items():
        found |= {f"{name}.{one}" for one in dir(kind) if one[0] != "_" and callable(getattr(kind, one))}
    return found - NO_CALLS


def test_every_public_call_is_tried():
    assert public_calls() <= set(FUNCTIONS)


# --- Wrong arguments ---


@pytest.fixture(scope="module")
def things():
    with xccl.init(provider="local") as comm:
        yield Things(comm)


# Where the message has the word that C has as well.
SAID = {
    "dst": "dst|destination",
    "src": "src|source",
    "send_tag": "send_tag|tag",
    "recv_tag": "recv_tag|tag",
    "size": "size|ranks",
}


def what_is_wrong_about(error, argument):
    """Nothing, if it is an InvalidArgument that names the argument."""
    if type(error) is not xccl.InvalidArgument:
        return f"{type(error).__name__}: {error}"
    return None if re.search(rf"\b({SAID.get(argument, argument)})", str(error)) else f"not named: {error}"


@pytest.mark.parametrize("name", [name for name, function in FUNCTIONS.items() if function.kinds])
def test_a_wrong_argument_is_named_and_the_next_call_works(things, name):
    function = FUNCTIONS[name]
    failures = []
    for argument, kind in function.kinds.items():
        for wrong in WRONG[kind]:
            given = function.right(things)
            value = wrong(given[argument]) if callable(wrong) else wrong
            error = error_of(function.of(things), **{**given, argument: value})
            if failure := what_is_wrong_about(error, argument):
                failures.append(f"{argument}={value!r:.60}: {failure}")
    function.of(things)(**function.right(things))
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_that_there_is_not_is_python_s_own_error(things, name):
    assert isinstance(error_of(FUNCTIONS[name].of(things), nonsense=1), TypeError)


def test_inputs_of_any_layout_are_taken(things):
    """What collectives only read need be neither contiguous nor aligned."""
    numbers = np.arange(12, dtype=np.float32).reshape(1, 12)
    for change in (with_gaps, misaligned, read_only):
        for call in (
            things.comm.all_reduce,
            things.comm.all_gather,
            things.comm.reduce_scatter,
            things.comm.all_to_all,
        ):
            assert call(change(numbers)).ravel().tolist() == numbers.ravel().tolist()


# --- The wrong moment ---

# What needs no other rank, and so works at any time: it looks, plans, gives back.
ALWAYS = {
    "Communicator.wait_stats",
    "Communicator.reset_wait_stats",
    "Communicator.abort",
    "Communicator.close",
    "View.release",
    "ExpertParallel.expert_load",
    "ExpertParallel.close",
    "ExpertParallel.plan",
    "Dispatched.expert",
    "Dispatched.rows_of",
    "Dispatched.release",
    "init",
    "spawn",
    "eplb.rebalance",
    "eplb.rebalance of slots",
    "eplb.rank_loads",
    "eplb.rebalance_experts",
    "Request.wait",
    "Request.test",
    "Request.cancel",  # of a request that has finished
}
PENDING = ("wait", "test", "cancel")


@dataclass
class Prepared:
    """Every function with right arguments, made while all was well, and a receive that nothing answers."""

    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]]

    def __init__(self, comm: xccl.Communicator) -> None:
        things = Things(comm)
        pending = comm.irecv(np.empty(1), comm.rank, 99)
        self.calls = {
            name: (function.of(things), function.right(things)) for name, function in FUNCTIONS.items()
        }
        self.calls.update({f"pending.{name}": (getattr(pending, name), {}) for name in PENDING})

    def outcomes(self, leave_out=()):
        """What each call raised; None if nothing."""
        found = {}
        for name, (call, arguments) in self.calls.items():
            if name in leave_out:
                continue
            try:
                call(**arguments)
                found[name] = None
            except xccl.Error as error:
                found[name] = error.with_traceback(None)
        return found


def check_refused(outcomes, kind, text, works=ALWAYS):
    """All but those that always work have raised that error."""
    for name, error in outcomes.items():
        if name in works:
            assert error is None, (name, error)
        else:
            assert type(error) is kind, (name, error)
            assert text in str(error), (name, error)


@pytest.fixture
def comm():
    """A communicator of one rank, which is a thread."""
    with xccl.init(provider="local", timeout=5) as comm:
        yield comm


def test_after_close(comm):
    prepared = Prepared(comm)
    comm.close()
    check_refused(prepared.outcomes(), xccl.Closed, "closed", ALWAYS | {"pending.cancel"})


def test_after_the_close_of_an_expert_parallel(comm):
    things = Things(comm)
    things.ep.close()
    for name in ("dispatch", "dispatch again", "combine", "input_buffer", "set_placement"):
        function = FUNCTIONS[f"ExpertParallel.{name}"]
        error = error_of(function.of(things), **function.right(things))
        assert type(error) is xccl.Closed
        assert "this ExpertParallel is closed" in str(error)
    assert type(error_of(things.d.output_buffer)) is xccl.Closed


def test_after_a_failure(comm):
    prepared = Prepared(comm)
    comm.abort("the disk is full")
    outcomes = prepared.outcomes(leave_out=["Communicator.shrink"])
    check_refused(outcomes, xccl.Error, "the disk is full", ALWAYS)


def test_while_another_thread_is_inside_a_call(comm):
    prepared = Prepared(comm)
    ended = []
    waiting = threading.Thread(
        target=lambda: ended.append(error_of(comm.recv, np.empty(1), comm.rank, 98, timeout=60))
    )
    waiting.start()
    wait_until(
        lambda: type(error_of_or_none(comm.barrier)) is xccl.InvalidArgument, "the thread is inside its call"
    )
    # These would end that call, or close what it is inside of.
    leave_out = ["Communicator.close", "Communicator.empty", "ExpertParallel.close"]
    check_refused(prepared.outcomes(leave_out), xccl.InvalidArgument, "another thread is inside a call")
    assert waiting.is_alive()
    comm.abort("enough")
    waiting.join(60)
    assert "enough" in str(ended[0])


def error_of_or_none(call):
    """What a call raised."""
    try:
        call()
    except xccl.Error as error:
        return error.with_traceback(None)
    return None


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_misuse import OWN_ENDS, Prepared, check_refused, xccl
with xccl.init(timeout=5) as comm:
    prepared = Prepared(comm)
    child = os.fork()
    if child == 0:
        try:
            check_refused(prepared.outcomes(leave_out=["spawn"]), xccl.Closed, "fork")
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check_refused(prepared.outcomes(OWN_ENDS), None, "", prepared.calls)
"""
# What would end the objects on which everything else is called, or wait in vain.
OWN_ENDS = (
    "Communicator.close",
    "Communicator.abort",
    "ExpertParallel.close",
    "pending.wait",
    "init",
    "spawn",
)


def run(text, *arguments):
    """Runs a program; its first argument is the folder of this file."""
    line = [sys.executable, "-c", text, str(Path(__file__).parent), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_after_fork():
    run(FORK)


# --- No memory ---


def filled(comm, piece):
    """Arrays that take all the memory there is, to the last `piece` bytes, and the error that said so."""
    arrays = []
    while True:
        try:
            arrays.append(comm.empty(piece, "uint8"))
        except xccl.OutOfMemory as error:
            return arrays, error.with_traceback(None)


def call_everything_in_want(comm, limit):
    """Every function works, or says what limit there is; and all work when the memory is there again."""
    prepared = Prepared(comm)
    arrays, error = filled(comm, 2**20)
    assert limit in str(error)
    outcomes = prepared.outcomes((*OWN_ENDS, "Communicator.split"))  # see below
    refused = {name: error for name, error in outcomes.items() if error is not None}
    for name, error in refused.items():
        assert type(error) is xccl.OutOfMemory, (name, error)
        assert limit in str(error), (name, error)
    ended = [error for error in refused.values() if "has failed before" in str(error)]
    del arrays[:]
    if ended:  # as documented, by rows that were sent here and had no place
        assert (ended[0].op, ended[0].phase) == ("dispatch", "pulling rows")
    with comm.shrink() if ended else comm.split(0) as sub:
        again = Prepared(sub)
        check_refused(again.outcomes(OWN_ENDS), None, "", again.calls)
    return set(refused)


def send_in_want(comm):
    """Streams need memory: without it nothing is sent or taken, and the same call works when there is some again."""
    arrays, _ = filled(comm, 2**20)
    other = 1 - comm.rank
    mine, into = np.full(2**18, comm.rank), np.empty(2**18, np.int64)
    error = error_of(comm.sendrecv, mine, other, into)
    assert type(error) is xccl.OutOfMemory
    comm.barrier()
    del arrays[:]
    assert comm.sendrecv(mine, other, into).nbytes == mine.nbytes
    assert (into == other).all()


def split_in_want(comm):
    """Others have counted on it, so this ends the communicator; the first cause stays, and shrink goes on."""
    arrays, _ = filled(comm, 2**20)
    error = error_of(comm.split, 0)
    again = error_of(comm.barrier)
    del arrays[:]
    with comm.shrink() as left:
        left.barrier()
        assert left.size == comm.size
    assert type(error) is type(again)
    return error


def test_a_full_heap_is_told_by_every_function_and_nothing_is_lost(processes):
    small = processes.variables(XCCL_ADDRESS_SPACE="256M")
    refused = small.run(call_everything_in_want, 2, "XCCL_ADDRESS_SPACE")
    assert refused[0] >= {"Communicator.empty", "Communicator.shrink", "ExpertParallel"}
    small.run(send_in_want, 2)
    errors = small.run(split_in_want, 2)
    kinds = {type(error) for error in errors}
    assert xccl.OutOfMemory in kinds
    assert kinds <= {xccl.OutOfMemory, xccl.PeerFailed}
    assert all(error.op == "split" and "XCCL_ADDRESS_SPACE" in str(error) for error in errors)


@pytest.fixture
def memory_cgroup():
    """A control group of processes that may take 256 MiB."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(root, f"xccl-tests-{os.getpid()}")
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                (folder / limit).write_text(str(2**28))
                break
        with contextlib.suppress(OSError):
            folder.rmdir()
    else:
        pytest.skip("this user may not make memory cgroups here")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup is empty")
    folder.rmdir()


LIMITED = """
import os, sys
from pathlib import Path
Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
sys.path.insert(0, sys.argv[1])
from test_misuse import call_everything_in_want, xccl
with xccl.init(timeout=5) as comm:
    assert "Communicator.empty" in call_everything_in_want(comm, "cgroup limit")
"""


def test_a_limit_of_a_cgroup_is_told_by_every_function_and_kills_nobody(memory_cgroup):
    run(LIMITED, memory_cgroup)
