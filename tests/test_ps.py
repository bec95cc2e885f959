"""`python -m xccl ps`: other processes' memory, read without their help: of stopped, dead, foreign and hostile ones.

Other people's jobs may run beside these tests, so each looks for its own among what there is to see.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import numpy as np
import pytest
from ranks import mark, marked, wait_until

import xccl
from xccl import _core
from xccl.cli import jobs, main, ps


def job_of(pids):
    """The job of these processes, if it is to be seen."""
    for job in jobs.survey().jobs:
        if any(rank.process and rank.process.pid in pids for rank in job.ranks):
            return job
    return None


def told(job):
    """What is said of each rank."""
    return [ps.doing(job, rank) for rank in job.ranks]


def waits(job):
    """For whom each rank waits."""
    return [ps.waits_for(job, rank) for rank in job.ranks]


def pids_json(pids):
    """The same through the command line."""
    command = [sys.executable, "-m", "xccl", "ps", "--json", "--waits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for job in json.loads(done.stdout)["jobs"]:
        if {rank["pid"] for rank in job["ranks"]} & set(pids):
            return job
    raise AssertionError(done.stdout)


# --- Ranks that wait, stopped or killed ---


def one_comes_late(comm, folder):
    array = comm.empty(1 << 20, "uint8")
    array[:] = 1
    comm.barrier()
    if comm.rank == 2:
        mark(folder, "outside")
        wait_until(lambda: marked(folder, "go on"), "the test says so")
    comm.all_reduce(np.ones(4, np.float32))
    return "through"


def test_a_stopped_rank_is_shown_and_so_is_who_waits_for_it(processes, tmp_path, capsys):
    def look(running):
        wait_until(lambda: marked(tmp_path, "outside"), "rank 2 is outside")
        os.kill(running.pids[2], signal.SIGSTOP)
        try:
            wait_until(
                lambda: (job := job_of(running.pids)) and waits(job) == [[2], [2], []],
                "ranks 0 and 1 are seen to wait for rank 2",
            )
            job = job_of(running.pids)
            assert [rank.process.pid for rank in job.ranks] == running.pids
            for text in told(job)[:2]:
                assert re.fullmatch(r"in all_reduce #1 for [\d.]+ s; waiting [\d.]+ s, for rank 2", text)
            wait_until(lambda: "stopped" in told(job_of(running.pids))[2], "rank 2 is seen to be stopped")
            assert re.fullmatch(
                r"stopped by a signal, outside XCCL for [\d.]+ s, after barrier #1",
                told(job_of(running.pids))[2],
            )
            assert main(["ps"]) == 0
            printed = capsys.readouterr().out
            assert f"job {job.name}: 3 ranks, met" in printed
            assert re.search(rf"^ +2 +{running.pids[2]} .* stopped by a signal", printed, re.MULTILINE)
            through = pids_json(running.pids)
            assert [rank["waits_for"] for rank in through["ranks"]] == [[2], [2], []]
            assert [rank["stopped"] for rank in through["ranks"]] == [False, False, True]
            assert all(rank["array_bytes"] >= 1 << 20 for rank in through["ranks"])
            assert all(rank["memory_bytes"] > rank["array_bytes"] for rank in through["ranks"])
            assert through["ranks"][0]["operation"] == "all_reduce #1"
            assert through["ranks"][0]["phase"] == "waiting"
            assert np.array(through["waits"]["count"]).shape == (3, 3)
        finally:
            os.kill(running.pids[2], signal.SIGCONT)
            mark(tmp_path, "go on")

    assert processes.run(one_comes_late, 3, tmp_path, meanwhile=look) == ["through"] * 3


def one_dies(comm, folder):
    comm.barrier()
    if comm.rank == 1:
        mark(folder, "ready")
        time.sleep(60)
    with contextlib.suppress(xccl.Error):
        comm.barrier()
    mark(folder, f"survived {comm.rank}")
    wait_until(lambda: marked(folder, "go on"), "the test says so")


def test_a_killed_rank_is_shown_by_what_the_others_know(processes, tmp_path):
    def look(running):
        wait_until(lambda: marked(tmp_path, "ready"), "rank 1 is ready")
        os.kill(running.pids[1], signal.SIGKILL)
        try:
            for rank in (0, 2):
                wait_until(lambda rank=rank: marked(tmp_path, f"survived {rank}"), "the others have noticed")
            job = job_of(running.pids)
            assert [rank.presence for rank in job.ranks] == ["present", "dead", "present"]
            assert told(job)[1] in ("dead", "dead, after barrier #1")  # root can still read its memory
            if os.geteuid() == 0:
                assert told(job)[1] == "dead, after barrier #1"
            assert "outside XCCL" in told(job)[0]
            assert 1 in job.ranks[0].seen["dead"]
        finally:
            mark(tmp_path, "go on")

    outcomes = processes.outcomes(one_dies, 3, tmp_path, meanwhile=look)
    assert outcomes[0].fine, outcomes[0].trace


def late_to_join(part, folder):
    if part.rank == 1:
        wait_until(lambda: marked(folder, "go on"), "the test says so")
    with part.init():
        pass


def test_ranks_that_have_not_come_yet_are_named(processes, tmp_path):
    def look(running):
        try:
            wait_until(lambda: job_of(running.pids), "rank 0 waits to meet")
            job = job_of(running.pids)
            assert not job.met
            assert re.fullmatch(r"in init for [\d.]+ s; meeting [\d.]+ s, for rank 1", told(job)[0])
            assert told(job)[1] == "has not come yet"
        finally:
            mark(tmp_path, "go on")

    outcomes = processes.outcomes(late_to_join, 2, tmp_path, joins=False, meanwhile=look)
    assert all(outcome.fine for outcome in outcomes)


def receive_from_anybody(comm, folder):
    if comm.rank == 0:
        comm.recv(np.empty(1, np.uint8), xccl.ANY_SOURCE)
    else:
        wait_until(lambda: marked(folder, "go on"), "the test says so")
        comm.send(np.ones(1, np.uint8), 0)


def test_a_receive_from_any_source_waits_for_anybody(processes, tmp_path):
    def look(running):
        try:
            wait_until(lambda: (job := job_of(running.pids)) and "in recv" in told(job)[0], "rank 0 receives")
            assert told(job_of(running.pids))[0].endswith("s, for anybody")
        finally:
            mark(tmp_path, "go on")

    processes.run(receive_from_anybody, 2, tmp_path, meanwhile=look)


def close_with_a_message_on_its_way(comm, folder):
    if comm.rank == 0:
        request = comm.isend(np.ones(1 << 20, np.uint8), 1)
        comm.close()  # waits for the receive
        return request.done
    wait_until(lambda: marked(folder, "go on"), "the test says so")
    comm.recv(np.empty(1 << 20, np.uint8), 0)
    return True


def test_a_rank_that_waits_in_close_is_shown_there(processes, tmp_path):
    def look(running):
        try:
            wait_until(lambda: (job := job_of(running.pids)) and "in close" in told(job)[0], "rank 0 closes")
            assert re.fullmatch(
                r"in close for [\d.]+ s; draining [\d.]+ s, for anybody", told(job_of(running.pids))[0]
            )
        finally:
            mark(tmp_path, "go on")

    assert processes.run(close_with_a_message_on_its_way, 2, tmp_path, meanwhile=look) == [True, True]


# --- However they were started ---

PROGRAM = """
import sys, time, xccl
def main(comm):
    comm.barrier()
    if comm.rank == 0:
        comm.recv(bytearray(1), 1, timeout=90)
    time.sleep(90)
if __name__ == "__main__":
    if sys.argv[1:] == ["spawn"]:
        xccl.spawn(main, 2)
    else:
        main(xccl.init())
"""


@contextlib.contextmanager
def started(folder, *line) -> Iterator[subprocess.Popen[str]]:
    """A program that runs until the block ends."""
    (folder / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [arg.replace("PROGRAM", str(folder / "program.py")) for arg in line],
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


LAUNCHERS = {
    "xccl run": [sys.executable, "-m", "xccl", "run", "-n", "2", "PROGRAM"],
    "spawn": [sys.executable, "PROGRAM", "spawn"],
    "mpirun": ["mpirun", "-n", "2", sys.executable, "PROGRAM"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_of_every_launcher_are_seen(launcher, tmp_path):
    line = LAUNCHERS[launcher]
    if not shutil.which(line[0]):
        pytest.skip(f"there is no {line[0]} here")
    with started(tmp_path, *line) as process:

        def find():
            return next(
                (job for job in jobs.survey().jobs if job.launcher and job.launcher.pid == process.pid), None
            )

        wait_until(lambda: (job := find()) and waits(job)[0] == [1], "rank 0 is seen to wait")
        job = find()
        assert [rank.number for rank in job.ranks] == [0, 1]
        assert "in recv #1" in told(job)[0]
        assert process.pid not in {one.pid for one in jobs.survey().unseen}
        assert f"started by process {process.pid}" in ps.as_text(jobs.survey())


# --- What cannot be read ---


def test_ranks_that_are_threads_are_said_to_be_invisible():
    program = """
        import xccl
        with xccl.init(provider="local") as comm:
            print("ready", flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        report = jobs.survey()
        assert process.pid in {one.pid for one in report.unseen}
        text = next(line for line in ps.as_text(report).splitlines() if f"process {process.pid}:" in line)
        assert "threads (provider local), which only it can tell" in text
    finally:
        process.communicate("\n", timeout=60)


def test_no_jobs_is_said():
    assert "no XCCL job of user" in ps.as_text(jobs.Report())
    assert ps.as_json(jobs.Report())["jobs"] == []


@contextlib.contextmanager
def memory_file(content) -> Iterator[int]:
    """A memory file with these bytes, held by this process under the name that ps looks for."""
    fd = os.memfd_create("xccl")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def segment() -> bytes:
    """The beginning of a real control segment, of a job of one rank."""
    with xccl.init(rank=0, size=1, job="to be copied") as comm:
        comm.barrier()
        with open(segment_path(comm.job), "rb") as file:
            return file.read(64 * 1024)


def segment_path(job):
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        with contextlib.suppress(OSError):
            if "memfd:xccl" in os.readlink(path):
                with open(path, "rb") as file:
                    seen = _core.observe(file.fileno())
                if seen and seen.get("job") == job.encode():
                    return path
    raise AssertionError("this process has no such job")


def test_another_version_is_named_with_ours():
    content = bytearray(segment())
    content[8:12] = struct.pack("<I", _core.layout_version + 7)
    with memory_file(content):
        report = jobs.survey()
        assert (os.getpid(), _core.layout_version + 7) in [(one.pid, v) for one, v in report.foreign]
        text = ps.as_text(report)
    assert f"memory layout {_core.layout_version + 7}, this XCCL reads layout {_core.layout_version}" in text


def test_a_real_segment_is_read_as_it_is():
    with memory_file(segment()) as fd:
        seen = _core.observe(fd)
    assert (seen["rank"], seen["size"], seen["job"], seen["state"]) == (0, 1, b"to be copied", "running")
    assert (seen["op"], seen["seq"], seen["members"]) == (b"barrier", 1, 0)
    assert seen["pid"] == os.getpid()


@pytest.mark.parametrize("size", [0, 2**31 - 1, 2**32 - 1, 1_400_000])
def test_a_size_that_cannot_be_is_refused(size):
    content = bytearray(segment())
    content[12:16] = struct.pack("<I", size)
    with memory_file(content) as fd:
        assert _core.observe(fd) is None  # 1.4 million ranks would fit a segment, but not this file


@pytest.mark.parametrize("length", [0, 1, 63, 64, 447, 448])
def test_a_file_that_ends_too_early_is_refused(length):
    with memory_file(segment()[:length]) as fd:
        assert _core.observe(fd) is None


@pytest.mark.parametrize("seed", range(5))
def test_hostile_bytes_do_no_harm(seed, capsys):
    real, rng = segment(), random.Random(seed)
    for _ in range(100):
        content = bytearray(real)
        for _ in range(rng.choice((1, 8, 64, 512))):
            content[rng.randrange(24, 1024)] = rng.choice((0, 0x1B, 0x7F, 0xFF, rng.randrange(256)))
        with memory_file(content) as fd:
            seen = _core.observe(fd)
            if seen is None or len(seen) == 1:
                continue
            assert 0 <= seen["rank"] < seen["size"]
            assert all(0 <= rank < seen["size"] for rank in seen["waits_for"] + seen["dead"] + seen["failed"])
    with memory_file(content):  # the last one, through everything
        assert main(["ps", "--waits"]) == 0
        assert main(["ps", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed


def test_a_name_cannot_move_the_cursor():
    content = bytearray(segment())
    name = b"\x1b[2J\x9b\r\nevil"
    content[320:328] = struct.pack("<Q", 2**64 - 1)
    content[328:448] = name.ljust(120, b"\0")
    with memory_file(content) as fd:
        assert _core.observe(fd)["job"] == name
        text = ps.as_text(jobs.survey())
    assert "?[2J" in text
    assert all(line.isprintable() for line in text.splitlines())


# --- Again and again ---


def test_watch_shows_it_again_until_ctrl_c():
    command = [sys.executable, "-m", "xccl", "ps", "--watch", "0.05", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for _ in range(2):
        assert "jobs" in json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(30) == 0
    process.stdout.close()


def test_watch_clears_a_terminal_and_nothing_else():
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "xccl", "ps", "--watch", "0.05"]
    process = subprocess.Popen(command, stdout=theirs)
    os.close(theirs)
    shown = b""
    while shown.count(b"\x1b[H\x1b[2J") < 2:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    os.close(ours)
    piped = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert piped.stdout
    first = [piped.stdout.readline() for _ in range(2)]
    piped.send_signal(signal.SIGINT)
    assert b"\x1b" not in b"".join(first) + piped.stdout.read()
    assert piped.wait(30) == 0
    piped.stdout.close()


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "often"])
def test_a_senseless_interval_is_refused(interval, capsys):
    with pytest.raises(SystemExit) as ending:
        main(["ps", "--watch", interval])
    assert ending.value.code == 2
    assert "expected seconds" in capsys.readouterr().err
