"""`xccl.spawn`: results, failures, and that nothing is left. The functions below run in other processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import xccl
from xccl.errors import InvalidArgument, Timeout

PROVIDERS = ["posix_shm", "local"]


def gather_ranks(comm, offset):
    import numpy as np

    return comm.all_gather(np.array([comm.rank + offset])).ravel().tolist()


def fail_in_rank_1(comm):
    if comm.rank == 1:
        raise LookupError("the cause")
    comm.barrier()


def kill_rank_1(comm):
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


def leave_rank_1(comm):
    if comm.rank == 1:
        sys.exit(3)
    comm.barrier()


def sleep_with_a_child(comm, folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    for name, pid in ((f"child-{comm.rank}", child.pid), (f"rank-{comm.rank}", os.getpid())):
        Path(folder, f"{name}.part").write_text(str(pid))
        Path(folder, f"{name}.part").rename(Path(folder, f"pid-{name}"))
    time.sleep(600)


def ignore_sigterm_and_fail_in_rank_1(comm):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    comm.barrier()
    if comm.rank == 1:
        raise LookupError("the cause")
    time.sleep(600)


def learn_of_rank_1(comm, folder, provider):
    if provider != "local":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which ranks are ended that have not failed first
    try:
        comm.barrier()  # so that all have come here before that signal does
        if comm.rank == 1:
            raise LookupError("the cause")
        comm.barrier()
    except xccl.Error as error:
        cause = str(error).rpartition("failed: ")[2]
        (folder / f"{comm.rank}").write_text(f"{type(error).__name__} {error.ranks} {cause}")
        raise


def return_a_lambda(comm):
    return lambda: comm


def print_and_return(comm):
    # In one write: print() writes its newline apart where output is not buffered, and another rank comes between.
    sys.stdout.write(f"rank {comm.rank} was here\n")


def nothing(comm):
    return None


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("provider", PROVIDERS)
def test_results_come_in_the_order_of_the_ranks(provider):
    assert xccl.spawn(gather_ranks, 3, args=(10,), provider=provider) == [[10, 11, 12]] * 3


def test_one_rank_is_enough():
    assert xccl.spawn(gather_ranks, 1, args=(5,)) == [[5]]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_error_is_that_of_the_rank_that_failed_first(provider):
    with pytest.raises(xccl.SpawnError) as caught:
        xccl.spawn(fail_in_rank_1, 3, provider=provider)
    error = caught.value
    assert (error.rank, error.ranks, error.exitcode) == (1, [1], None)
    assert "rank 1 of 3 raised LookupError: the cause" in str(error)
    assert "in fail_in_rank_1" in error.traceback


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_error_of_a_rank_travels_to_the_others(provider, tmp_path):
    with pytest.raises(xccl.SpawnError, match="the cause"):
        xccl.spawn(learn_of_rank_1, 3, args=(tmp_path, provider), provider=provider)
    for rank in (0, 2):
        assert (tmp_path / f"{rank}").read_text() == "PeerFailed [1] LookupError: the cause"


def test_a_thread_s_own_exception_is_kept():
    with pytest.raises(xccl.SpawnError) as caught:
        xccl.spawn(fail_in_rank_1, 2, provider="local")
    assert isinstance(caught.value.__cause__, LookupError)


def test_the_death_of_a_rank_is_told_with_its_signal():
    with pytest.raises(
        xccl.SpawnError, match="rank 1 of 3 ended without a result: killed by SIGKILL"
    ) as caught:
        xccl.spawn(kill_rank_1, 3)
    assert (caught.value.rank, caught.value.exitcode) == (1, -signal.SIGKILL)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_leaving_by_sys_exit_is_a_failure(provider):
    with pytest.raises(xccl.SpawnError, match="rank 1 of 2 raised SystemExit: 3"):
        xccl.spawn(leave_rank_1, 2, provider=provider)


def test_ranks_that_ignore_sigterm_are_killed(monkeypatch):
    monkeypatch.setattr("xccl.launch.spawn._GRACE_S", 0.2)
    before = set(multiprocessing.active_children())
    with pytest.raises(xccl.SpawnError, match="the cause"):
        xccl.spawn(ignore_sigterm_and_fail_in_rank_1, 2)
    assert set(multiprocessing.active_children()) == before


def test_a_timeout_names_the_ranks_and_leaves_nothing(tmp_path):
    with pytest.raises(Timeout) as caught:
        xccl.spawn(sleep_with_a_child, 2, args=(str(tmp_path),), timeout=5)
    assert caught.value.ranks == [0, 1]
    family = [int(path.read_text()) for path in tmp_path.glob("pid-*")]  # however far they had come
    assert not [pid for pid in family if lives(pid)]


def test_ranks_die_with_the_process_that_spawned_them(tmp_path):
    (tmp_path / "parent.py").write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import xccl
            from test_spawn import sleep_with_a_child

            if __name__ == "__main__":
                xccl.spawn(sleep_with_a_child, 2, args=({str(tmp_path)!r},))
            """
        )
    )
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    ranks = [int(path.read_text()) for path in tmp_path.glob("pid-rank-*")]
    while any(lives(pid) for pid in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for path in tmp_path.glob("pid-child-*"):  # nobody can end these but us: their rank had no say
        os.kill(int(path.read_text()), signal.SIGKILL)


def test_what_ranks_print_is_not_lost(tmp_path):
    code = "import xccl, test_spawn as t\nif __name__ == '__main__': xccl.spawn(t.print_and_return, 2)"
    (tmp_path / "parent.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}"
    )
    result = subprocess.run(
        [sys.executable, "parent.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert sorted(result.stdout.splitlines()) == ["rank 0 was here", "rank 1 was here"], result.stderr


@pytest.mark.parametrize("provider", PROVIDERS)
def test_nprocs_must_be_positive(provider):
    with pytest.raises(InvalidArgument, match="nprocs=0"):
        xccl.spawn(nothing, 0, provider=provider)


def test_a_function_that_other_processes_cannot_import_is_refused_with_a_remedy():
    with pytest.raises(InvalidArgument, match=r"lambda.*provider='local'"):
        xccl.spawn(lambda comm: None, 2)
    with pytest.raises(InvalidArgument, match="args cannot be given"):
        xccl.spawn(nothing, 2, args=(threading.Lock(),))
    assert xccl.spawn(lambda comm: comm.rank, 2, provider="local") == [0, 1]


def test_a_function_of_a_notebook_is_refused_with_a_remedy():
    session = "import xccl\ndef fn(comm): pass\nxccl.spawn(fn, 2)"
    result = subprocess.run([sys.executable, "-"], input=session, capture_output=True, text=True, timeout=60)
    assert "InvalidArgument: spawn: new processes cannot import fn" in result.stderr
    assert "provider='local'" in result.stderr


def test_a_result_that_cannot_be_sent_is_that_rank_s_error():
    with pytest.raises(xccl.SpawnError, match=r"rank \d of 2 raised .*lambda"):
        xccl.spawn(return_a_lambda, 2)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text("import xccl\ndef fn(comm): pass\nxccl.spawn(fn, 2)")
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "__name__ == '__main__'" in result.stderr.splitlines()[-1]


def test_the_error_survives_pickling():
    error = xccl.SpawnError("message", rank=2, exitcode=-9, traceback="trace")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.rank, copy.exitcode, copy.traceback) == ("message", 2, -9, "trace")
