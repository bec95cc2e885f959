"""`python -m xccl run`, by real launchers and real ranks. The ranks need no communicator here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

DEADLINE = 60.0

# What the programs below begin with. `mark` leaves a file for the test to wait for; `wait_for` waits for one.
PRELUDE = """
import os, signal, subprocess, sys, time
rank = int(os.environ["XCCL_RANK"])
def mark(name, text=""):
    with open(name + ".part", "w") as file:
        file.write(str(text))
    os.rename(name + ".part", name)
def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited too long")
        time.sleep(0.01)
def forever():
    while True:
        time.sleep(60)
"""


@pytest.fixture
def program(tmp_path):
    """Writes a program; returns the command that runs it in ranks."""

    def write(source: str, *options: str, n: int = 2) -> list[str]:
        (tmp_path / "program.py").write_text(PRELUDE + textwrap.dedent(source))
        return [sys.executable, "-m", "xccl", "run", "-n", str(n), *options, "program.py"]

    return write


@pytest.fixture
def finish(tmp_path):
    """Runs a command to its end."""

    def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE, **options
        )

    return run


@pytest.fixture
def start(tmp_path):
    """Starts a command whose launcher the test will end."""
    started = []

    def run(command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.01)


def pids(folder: Path, count: int) -> list[int]:
    """The process ids that the ranks left in files named pid-*, once there are `count`."""
    wait_until(lambda: len(list(folder.glob("pid-*[0-9]"))) == count, f"{count} processes have started")
    return [int(path.read_text()) for path in folder.glob("pid-*[0-9]")]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ranks_know_who_they_are_and_share_a_job(program, finish):
    result = finish(program('print(rank, os.environ["XCCL_SIZE"], os.environ["XCCL_JOB"])', n=4))
    assert result.returncode == 0
    words = sorted(line.split() for line in result.stdout.splitlines())
    assert [(w[0], w[1]) for w in words] == [(str(rank), "4") for rank in range(4)]
    assert len({w[2] for w in words}) == 1


def test_two_jobs_have_two_names_unless_one_is_given(program, finish):
    command = program('print(os.environ["XCCL_JOB"])', n=1)
    assert finish(command).stdout != finish(command).stdout
    assert finish(program('print(os.environ["XCCL_JOB"])', "--job", "mine", n=1)).stdout == "mine\n"


def test_lines_of_different_ranks_are_never_mixed(program, finish):
    result = finish(
        program(
            """
            for _ in range(100):
                for _ in range(10):
                    sys.stdout.write(str(rank) * 10)
                    sys.stdout.flush()
                print(flush=True)
            sys.stdout.write(str(rank) * 100)
            """,
            n=6,
        )
    )
    assert result.returncode == 0
    assert sorted(result.stdout.splitlines()) == sorted(
        str(rank) * 100 for rank in range(6) for _ in range(101)
    )


def test_tags_name_the_rank_of_every_line(program, finish):
    result = finish(program('print("a\\nb"); print("c", file=sys.stderr)', "--tag-output"))
    assert sorted(result.stdout.splitlines()) == ["[0] a", "[0] b", "[1] a", "[1] b"]
    assert sorted(result.stderr.splitlines()) == ["[0] c", "[1] c"]


def test_only_rank_0_reads_the_standard_input(program, finish):
    result = finish(program("print(rank, repr(sys.stdin.read()))", n=3), input="some text")
    assert sorted(result.stdout.splitlines()) == ["0 'some text'", "1 ''", "2 ''"]


def test_a_failure_ends_the_others_and_is_told_last(program, finish):
    result = finish(
        program(
            """
            if rank == 2:
                print("the reason", file=sys.stderr)
                sys.exit(7)
            forever()
            """,
            n=4,
        )
    )
    assert result.returncode == 7
    report = result.stderr.partition("xccl run: ")[2].splitlines()
    assert report == [
        "rank 2 of 4 failed first: exit status 7",
        "It wrote to stderr at last:",
        "    the reason",
    ]


def test_death_by_a_signal_is_128_and_its_number(program, finish):
    result = finish(program("if rank == 1: os.kill(os.getpid(), signal.SIGUSR1)\nforever()"))
    assert result.returncode == 128 + signal.SIGUSR1
    assert "rank 1 of 2 failed first: killed by SIGUSR1" in result.stderr


def test_the_exception_that_ends_a_rank_travels_to_the_others(program, finish, tmp_path):
    result = finish(
        program(
            """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which ranks are ended that have not failed first
            import xccl
            comm = xccl.init()
            sub = comm.split(0)
            mark(f"made-{rank}")
            if rank == 1:
                wait_until(lambda: all(os.path.exists(f"made-{r}") for r in range(3)))
                raise LookupError("the cause")
            try:
                (sub if rank else comm).barrier()
            except xccl.PeerFailed as error:
                mark(f"told-{rank}", f"{error.ranks} {error}")
                raise
            """,
            n=3,
        )
    )
    assert result.returncode == 1
    assert "rank 1 of 3 failed first" in result.stderr
    for rank in (0, 2):
        told = (tmp_path / f"told-{rank}").read_text()
        assert told.startswith("[1] ")
        assert told.endswith("rank 1 failed: LookupError: the cause")


def test_a_rank_that_blames_its_peer_is_not_the_cause(program, finish):
    result = finish(
        program(
            """
            if rank == 0:
                mark("zero", os.getpid())
                sys.exit("xccl.errors.PeerFailed: rank 1 raised")
            wait_until(lambda: os.path.exists("zero"))
            wait_until(lambda: not os.path.exists("/proc/" + open("zero").read()))
            sys.exit("the cause")
            """
        )
    )
    assert "rank 1 of 2 failed first" in result.stderr
    assert result.stderr.endswith("the cause\n")


# A rank with a child in its own session, and both note their process ids.
STUBBORN_FAMILY = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
mark(f"pid-child-{rank}", child.pid)
mark(f"pid-rank-{rank}", os.getpid())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_leaves_nothing(program, start, tmp_path, number):
    launcher = start(program(STUBBORN_FAMILY + "forever()", "--grace", "0.2"))
    family = pids(tmp_path, 4)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=DEADLINE)
    assert launcher.returncode == 128 + number
    assert err.endswith(f"xccl run: ended by {number.name}\n")
    assert not [pid for pid in family if lives(pid)]


def test_ranks_may_clean_up_when_interrupted(program, start, tmp_path):
    launcher = start(
        program(
            """
            mark(f"pid-{rank}", os.getpid())
            try:
                forever()
            except KeyboardInterrupt:
                print("cleaned up")
            """
        )
    )
    pids(tmp_path, 2)
    launcher.send_signal(signal.SIGINT)
    out, _ = launcher.communicate(timeout=DEADLINE)
    assert out.splitlines() == ["cleaned up", "cleaned up"]


def test_a_failure_leaves_nothing(program, finish, tmp_path):
    source = """
    if rank == 0:
        forever()
    wait_until(lambda: os.path.exists("pid-rank-0"))
    sys.exit(3)
    """
    result = finish(program(STUBBORN_FAMILY + textwrap.dedent(source), "--grace", "0.2"))
    assert result.returncode == 3
    assert not [pid for pid in pids(tmp_path, 4) if lives(pid)]


def test_success_leaves_nothing(program, finish, tmp_path):
    assert finish(program(STUBBORN_FAMILY)).returncode == 0
    assert not [pid for pid in pids(tmp_path, 4) if lives(pid)]


def test_ranks_die_with_a_launcher_that_is_killed(program, start, tmp_path):
    launcher = start(program('mark(f"pid-{rank}", os.getpid())\nforever()'))
    ranks = pids(tmp_path, 2)
    launcher.kill()
    wait_until(lambda: not any(lives(pid) for pid in ranks), "the ranks are dead")


def test_a_reader_that_goes_away_ends_the_job(program, start):
    launcher = start(program('while True: print("y")'))
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "y\n"
    launcher.stdout.close()
    assert launcher.wait(timeout=DEADLINE) == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-program"], 127, "rank 0 could not be started: there is no program 'no-such-program'"),
        (["./not-executable"], 126, "'./not-executable' is not executable"),
        (["missing.py"], 2, "there is no file 'missing.py'"),
        ([], 2, "which program?"),
    ],
)
def test_a_program_that_cannot_be_started(finish, tmp_path, words, code, said):
    (tmp_path / "not-executable").write_text("")
    result = finish([sys.executable, "-m", "xccl", "run", "-n", "2", *words])
    assert result.returncode == code
    assert said in result.stderr


@pytest.mark.parametrize(
    "words", [["-m", "greet", "-n", "1"], ["greet.py", "-n", "1"], ["--", "sh", "-c", "echo hi"]]
)
def test_programs_are_files_modules_or_executables(finish, tmp_path, words):
    (tmp_path / "greet.py").write_text("import sys; assert sys.argv[1:] == ['-n', '1']; print('hi')")
    result = finish([sys.executable, "-m", "xccl", "run", "-n", "2", *words])
    assert (result.returncode, result.stdout) == (0, "hi\nhi\n"), result.stderr


def test_256_ranks_with_few_open_files_allowed(finish):
    # The last one lets all of them go, so that they are there at the same time.
    script = "echo $XCCL_RANK; [ $XCCL_RANK = 255 ] && : > go; while [ ! -e go ]; do sleep 1; done"
    command = [sys.executable, "-m", "xccl", "run", "-n", "256", "sh", "-c", script]
    result = finish(["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *command])
    assert result.returncode == 0, result.stderr
    assert sorted(map(int, result.stdout.split())) == list(range(256))


def test_blas_threads_are_shared_out_unless_you_say(program, finish, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = program('print(os.environ["OMP_NUM_THREADS"])', n=1)
    assert finish(command).stdout == f"{len(os.sched_getaffinity(0))}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert finish(command).stdout == "3\n"
