"""`XCCL_TRACE`: files that a trace viewer reads, with waits inside operations, on one clock; whole after any end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter

import numpy as np
import pytest
from ranks import marked, wait_until

import xccl

LATE_S = 0.4
AT_LEAST_S = 0.2


def work(comm):
    comm.barrier()
    comm.all_reduce(np.ones(100, np.float32))
    comm.all_gather(np.ones(5, np.uint8))
    if comm.rank == 0:
        time.sleep(LATE_S)
        comm.send(np.ones(7, np.uint8), 1, tag=3)
    if comm.rank == 1:
        comm.recv(np.empty(99, np.uint8), 0)
    with xccl.ExpertParallel(comm, 4, 8, 4, 2, dtype="float32") as ep:
        d = ep.dispatch(np.ones((3, 8), np.float32), np.zeros((3, 2), int), np.ones((3, 2), np.float32))
        ep.combine(d.x, d)
        d.release()
    for _ in range(50):
        comm.iprobe(comm.rank)  # asks nobody: the other may have closed


def events_of(path, cut=False):
    """By kind: operations, waits, and what tells of the process. `cut`: the file may end in a half-written event."""
    written = path.read_text()
    if cut and not written.endswith("\n]\n"):
        written = written.rpartition(",\n")[0] + "]"
    events = json.loads(written)
    assert isinstance(events, list)
    told = [event for event in events if event["ph"] == "M"]
    assert {event["ph"] for event in events} <= {"M", "X"}
    kinds = {kind: [event for event in events if event.get("cat") == kind] for kind in ("operation", "wait")}
    return kinds["operation"], kinds["wait"], told


def end(event):
    return event["ts"] + event["dur"]


def around(wait, operations):
    """The operations in which a wait lies, in time and on its track."""
    return [
        one
        for one in operations
        if one["tid"] == wait["tid"] and one["ts"] <= wait["ts"] and end(wait) <= end(one) + 1e-3
    ]


def test_operations_hold_their_waits_on_a_common_clock(ranks, tmp_path):
    before = time.monotonic()
    ranks.variables(XCCL_TRACE=str(tmp_path / "trace.json")).run(work, 2)
    after = time.monotonic()
    found = [events_of(tmp_path / f"trace.{rank}.json") for rank in range(2)]
    for rank, (operations, waits, told) in enumerate(found):
        assert {event["pid"] for event in operations + waits + told} == {rank}
        assert any(f"rank {rank} of 2" in event["args"].get("name", "") for event in told)
        names = Counter(event["name"] for event in operations)
        assert names["barrier"] == names["all_reduce"] == names["dispatch"] == names["combine"] == 1
        assert "iprobe" not in names
        assert all(before <= one["ts"] / 1e6 <= end(one) / 1e6 <= after for one in operations + waits)
        for wait in waits:
            assert len(around(wait, operations)) == 1, wait
            assert wait["args"]["phase"]
        by_name = {one["name"]: one["args"] for one in operations}
        assert by_name["all_reduce"]["bytes"] == 400
        assert by_name["all_gather"]["bytes"] == 5
        assert by_name["dispatch"]["bytes"] == 6 * 32
        assert by_name["barrier"]["seq"] == 1
    message = {"bytes": 7, "peer": 1}
    assert message.items() <= next(one for one in found[0][0] if one["name"] == "send")["args"].items()
    receive = next(one for one in found[1][0] if one["name"] == "recv")
    assert {"bytes": 7, "peer": 0}.items() <= receive["args"].items()
    long = [one for one in found[1][1] if one["dur"] >= AT_LEAST_S * 1e6]
    assert any(one["name"] == "wait for rank 0" and around(one, [receive]) for one in long)
    # Nobody leaves a barrier before everybody has come to it, by anybody's clock.
    barriers = [next(one for one in found[rank][0] if one["name"] == "barrier") for rank in range(2)]
    assert max(one["ts"] for one in barriers) <= min(end(one) for one in barriers)


def test_the_rank_goes_where_the_name_says(processes, tmp_path):
    processes.variables(XCCL_TRACE=str(tmp_path / "a%r" / "t-%r")).outcomes(work, 1)
    assert list(tmp_path.iterdir()) == []  # the folder is not made
    (tmp_path / "a0").mkdir()
    processes.variables(XCCL_TRACE=str(tmp_path / "a%r" / "t-%r")).run(work_alone, 1)
    processes.variables(XCCL_TRACE=str(tmp_path / "plain")).run(work_alone, 1)
    processes.variables(XCCL_TRACE=str(tmp_path / "x.y" / ".hidden")).outcomes(work_alone, 1)
    assert (tmp_path / "a0" / "t-0").exists()
    assert (tmp_path / "plain.0").exists()


def work_alone(comm):
    comm.barrier()


def trace_until_killed(comm, folder):
    for number in range(200_000):
        comm.barrier()
        if number == 2000 and comm.rank == 0:
            (folder / "going").touch()


def test_the_trace_of_a_killed_rank_can_be_read(processes, tmp_path):
    def kill_one(running):
        wait_until(lambda: marked(tmp_path, "going"), "barriers are under way")
        os.kill(running.pids[1], signal.SIGKILL)

    outcomes = processes.variables(XCCL_TRACE=str(tmp_path / "t.json")).outcomes(
        trace_until_killed, 2, tmp_path, meanwhile=kill_one
    )
    assert outcomes[1].exitcode == -signal.SIGKILL
    assert isinstance(outcomes[0].error, xccl.PeerLost)
    # A signal that kills ends a write between two pages: the events before are there, the closing bracket is not.
    operations = [events_of(tmp_path / f"t.{rank}.json", cut=rank == 1)[0] for rank in range(2)]
    assert len(operations[1]) > 100  # more than one write's worth
    assert operations[0][-1]["args"]["failed"] is True
    assert not any("failed" in one["args"] for one in operations[0][:-1])


def run(program, **variables):
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, **variables}
    )


def test_an_exception_does_not_cost_the_trace(tmp_path):
    done = run(
        "import xccl; comm = xccl.init(); comm.barrier(); raise SystemError('oops')",
        XCCL_TRACE=str(tmp_path / "t"),
    )
    assert "oops" in done.stderr
    assert [one["name"] for one in events_of(tmp_path / "t.0")[0]] == ["barrier"]


def test_joins_of_one_program_follow_each_other_and_a_forked_child_writes_nothing(tmp_path):
    done = run(
        """
        import os, xccl
        for _ in range(2):
            with xccl.init() as comm:
                comm.barrier()
                comm.barrier()
                if (child := os.fork()) == 0:
                    raise SystemExit(0)
                os.waitpid(child, 0)
        """,
        XCCL_TRACE=str(tmp_path / "t.json"),
    )
    assert done.returncode == 0, done.stderr
    operations, _, told = events_of(tmp_path / "t.0.json")
    assert [one["args"]["seq"] for one in operations] == [1, 2, 1, 2]
    assert sum(event["name"] == "process_name" for event in told) == 2


@pytest.mark.parametrize("where", ["missing/trace.json", "folder.%r"])
def test_a_path_that_cannot_be_written_is_an_error_at_init(monkeypatch, tmp_path, where):
    (tmp_path / "folder.0").mkdir()
    monkeypatch.setenv("XCCL_TRACE", str(tmp_path / where))
    with pytest.raises(xccl.InvalidArgument, match=r"XCCL_TRACE: cannot write .*(missing|folder)"):
        xccl.init()


def test_two_processes_do_not_write_one_file_unless_by_their_number(tmp_path):
    program = """
        import os, xccl
        comm = xccl.init()
        if (child := os.fork()) == 0:
            try:
                xccl.init().close()
            except xccl.InvalidArgument as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        comm.barrier()
        comm.close()
    """
    done = run(program, XCCL_TRACE=str(tmp_path / "t"))
    assert "is being written by another process; put %p" in done.stdout
    assert [one["name"] for one in events_of(tmp_path / "t.0")[0]] == ["barrier"]
    done = run(program, XCCL_TRACE=str(tmp_path / "by-%p"))
    assert done.stdout == ""
    assert len(list(tmp_path.glob("by-*.0"))) == 2


def test_a_job_name_of_any_bytes_keeps_the_trace_readable(monkeypatch, tmp_path):
    monkeypatch.setenv("XCCL_TRACE", str(tmp_path / "t"))
    with xccl.init(rank=0, size=1, job='quote " backslash \\ é') as comm:
        comm.barrier()
    assert "quote" in events_of(tmp_path / "t.0")[2][0]["args"]["name"]


def test_a_full_disk_is_an_error_at_init(monkeypatch, tmp_path):
    (tmp_path / "t.0").symlink_to("/dev/full")
    monkeypatch.setenv("XCCL_TRACE", str(tmp_path / "t"))
    with pytest.raises(xccl.InvalidArgument, match=r"XCCL_TRACE: cannot write .* No space left"):
        xccl.init()
