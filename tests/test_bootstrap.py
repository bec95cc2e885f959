"""How ranks find each other: by the name of their job, within a deadline, and what happens when they do not."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import Part, error_of, kill, mark, marked, state_of, wait_until

import xccl
from xccl import _core


def join(part, *, startup_timeout=60.0, **changes):
    """Joins as another rank, or with another size, than the part says."""
    return replace(part, **changes).init(startup_timeout=startup_timeout)


# --- It works ----------------------------------------------------------------------------------------------------


def join_again_and_again(part, times):
    for _ in range(times):
        with part.init() as comm:
            comm.barrier()


def test_the_name_of_a_job_can_be_used_again_when_all_have_joined(either_provider):
    either_provider.run(join_again_and_again, 3, 20, joins=False)


def join_two_jobs(part):
    with part.init() as first, join(part, job=part.job + "-second") as second:
        first.barrier()
        second.barrier()
        first.barrier()
        return first.job, second.job


def test_a_process_can_be_in_two_jobs_at_once(either_provider):
    for first, second in either_provider.run(join_two_jobs, 2, joins=False):
        assert second == first + "-second"


def join_named(part, name):
    with join(part, job=f"{part.job} {name}") as comm:
        comm.barrier()
        assert comm.job == f"{part.job} {name}"


@pytest.mark.parametrize("name", ["x", "with spaces and / and \N{GREEK SMALL LETTER ALPHA}", "long " * 200])
def test_a_job_may_have_any_name(either_provider, name):
    either_provider.run(join_named, 2, name, joins=False)


def join_in_some_order(part, folder, order):
    turn = order.index(part.rank)
    if turn:
        wait_until(lambda: marked(folder, f"rank-{order[turn - 1]}"), "it is my turn")
    mark(folder, f"rank-{part.rank}")
    with part.init() as comm:
        comm.barrier()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_ranks_may_come_in_any_order(either_provider, tmp_path, order):
    either_provider.run(join_in_some_order, 3, tmp_path, order, joins=False)


def test_a_program_that_nobody_launched_is_a_job_of_one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with xccl.init() as comm, xccl.init() as other:
        assert (comm.rank, comm.size) == (0, 1)
        assert comm.job != other.job
        comm.barrier()


def test_a_launcher_that_put_ranks_on_other_hosts_is_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(xccl.InvalidArgument, match="2 of 4 ranks on this host"):
        xccl.init()


REFUSED_FIRST = """
import os, xccl
if os.environ["XCCL_RANK"] == "0":
    for wrong in ({"provider": "bogus"}, {"timeout": -1}, {"startup_timeout": "soon"}):
        try:
            xccl.init(**wrong)
        except xccl.InvalidArgument:
            continue
        raise AssertionError(wrong)
for _ in range(2):
    with xccl.init(startup_timeout=20) as comm:
        comm.barrier()
"""


def test_a_call_that_was_refused_is_corrected_and_made_again(tmp_path):
    (tmp_path / "program.py").write_text(REFUSED_FIRST)
    command = [sys.executable, "-m", "xccl", "run", "-n", "2", "program.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)


# --- It does not ---------------------------------------------------------------------------------------------------


def miss_rank_2_of_4(part):
    return error_of(join, part, rank=[0, 1, 3][part.rank], size=4, startup_timeout=0.5)


def test_a_missing_rank_is_named_when_the_time_is_up(either_provider):
    errors = either_provider.run(miss_rank_2_of_4, 3, joins=False)
    for error in errors:
        assert type(error) is xccl.Timeout, repr(error)
        assert error.ranks == [2]
        assert (error.op, error.phase) == ("init", "meeting")
        assert "0.5 s" in str(error)


def miss_rank_0(part):
    return error_of(join, part, rank=part.rank + 1, size=3, startup_timeout=0.3)


def test_a_missing_rank_0_is_named_when_the_time_is_up(either_provider):
    for error in either_provider.run(miss_rank_0, 2, joins=False):
        assert type(error) is xccl.Timeout
        assert error.ranks == [0]


def disagree_about_the_size(part):
    return error_of(join, part, size=2 + part.rank, startup_timeout=20)


def test_ranks_that_disagree_about_the_size_learn_so(either_provider):
    errors = either_provider.run(disagree_about_the_size, 2, joins=False)
    for error in errors:
        assert type(error) is xccl.Mismatch
        assert "2" in str(error)
        assert "3" in str(error)
    assert errors[0].ranks == [1]


def take_a_name_twice(part, folder):
    """Both are rank 0 of 2, and wait long enough to meet."""
    mark(folder, f"started-{part.rank}")
    wait_until(lambda: marked(folder, "started-0") and marked(folder, "started-1"), "both have started")
    return error_of(join, part, rank=0, size=2, startup_timeout=3)


def test_a_job_whose_name_is_taken_is_refused(either_provider, tmp_path):
    errors = either_provider.run(take_a_name_twice, 2, tmp_path, joins=False)
    refused, late = sorted(errors, key=lambda error: type(error).__name__)
    assert type(refused) is xccl.InvalidArgument
    assert "already" in str(refused)
    assert "job" in str(refused)
    assert type(late) is xccl.Timeout
    assert late.ranks == [1]


def two_claim_to_be_rank_1(part, folder):
    """Whoever comes later is refused. Rank 2 comes when that has happened, and the job starts with the other."""
    rank = {0: 0, 1: 1, 2: 2, 3: 1}[part.rank]
    if rank == 2:
        wait_until(lambda: marked(folder, "refused"), "one has been refused")
    try:
        with join(part, rank=rank, size=3, startup_timeout=60) as comm:
            comm.barrier()
    except xccl.InvalidArgument as error:
        mark(folder, "refused")
        return error.with_traceback(None)


def test_a_rank_that_is_there_already_is_refused_and_the_job_starts(either_provider, tmp_path):
    found = either_provider.run(two_claim_to_be_rank_1, 4, tmp_path, joins=False)
    assert found[0] is found[2] is None
    [refused] = [error for error in found if error]
    assert "already has a rank 1" in str(refused)


def wait_for_rank_2(part, folder):
    """Ranks 0 and 1 wait for rank 2, which comes only when one of them has been killed."""
    if part.rank == 2:
        wait_until(lambda: marked(folder, "killed"), "a rank has been killed")
        return error_of(join, part, startup_timeout=2)
    mark(folder, f"job-{part.rank}", part.job)
    return error_of(join, part, startup_timeout=50)


def have_met(folder, pids):
    """Ranks 0 and 1 are connected by a socket of the job's name, and sleep."""
    if not all(marked(folder, f"job-{rank}") for rank in range(2)):
        return False
    name = f"@xccl.{os.geteuid()}.{(folder / 'job-0').read_text()}"
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    connected = any(words[-1] == name and words[5] == "03" for words in sockets)
    return connected and all(state_of(pid) == "S" for pid in pids[:2])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_the_job_starts_is_lost(processes, tmp_path, victim):
    def kill_one(running):
        wait_until(lambda: have_met(tmp_path, running.pids), "ranks 0 and 1 have met")
        kill(running.pids[victim])
        mark(tmp_path, "killed")

    outcomes = processes.outcomes(wait_for_rank_2, 3, tmp_path, joins=False, meanwhile=kill_one)
    assert outcomes[victim].exitcode == -signal.SIGKILL
    assert outcomes[1 - victim].fine, outcomes[1 - victim].trace
    survivor = outcomes[1 - victim].value
    assert type(survivor) is xccl.PeerLost
    assert survivor.ranks == [victim]
    assert f"rank {victim} ended while job" in str(survivor)
    # Who comes after rank 0 has gone or given up finds nobody.
    assert type(outcomes[2].value) in (xccl.PeerLost, xccl.Timeout)


# --- Strangers speak under the job's name -----------------------------------------------------------------------------

HEAD = struct.Struct("<QIIiiII")  # magic, version, kind, rank, size, parcels, descriptors each
HELLO, PARCELS, ERROR = 1, 2, 3


def address(job):
    return f"\0xccl.{os.geteuid()}.{job}"


def a_real_hello(part):
    """What a rank says first: its head, and the bytes of its parcel with their length before them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as host:
        host.bind(address(part.job))
        host.listen()
        caller = threading.Thread(target=error_of, args=(join, part), kwargs={"startup_timeout": 5})
        caller.start()
        member, _ = host.accept()
        with member:
            said, descriptors, _, _ = socket.recv_fds(member, 1 << 16, 8)
        caller.join()
    for descriptor in descriptors:
        os.close(descriptor)
    return HEAD.unpack_from(said), said[HEAD.size :], len(descriptors)


def wrong_hellos(luck, head, parcel):
    """Bytes, and how many descriptors go with them; none of them could be a rank of this job."""
    magic, version, _, _, size, _, each = head
    for length in (1, 8, 31, 32, 33, 200, 4000):
        yield luck.randbytes(length), 0
    yield luck.randbytes(100), 5
    whole = HEAD.pack(magic, version, HELLO, 1, size, 1, each) + parcel
    for length in range(8, len(whole), 7):
        yield whole[:length], each
    for _ in range(30):
        odd = luck.choice([-1, 0, 3, 7, 255, -(2**31), 2**31 - 1])
        yield HEAD.pack(magic, version, HELLO, -abs(odd), size, 1, each) + parcel, each
        yield HEAD.pack(magic, version, HELLO, size + abs(odd) % 1000, size, 1, each) + parcel, each
        yield HEAD.pack(magic, version, odd % 2**32 if odd != 1 else 9, 1, size, 1, each) + parcel, each
        yield HEAD.pack(magic, version, HELLO, 1, size, 2 + odd % 2**20, each) + parcel, each
        yield HEAD.pack(magic, version, HELLO, 1, size, 1, each + 1 + odd % 2**20) + parcel, each
        yield HEAD.pack(magic, version, HELLO, 1, size, 1, each) + parcel, each + 1 + odd % 5
        yield HEAD.pack(magic, version, HELLO, 1, size, 1, each) + struct.pack("<I", 257 + odd % 2**20), each


def disturbed_rank(part, folder):
    """Rank 0 hosts the meeting; the others come when the strangers have spoken."""
    if part.rank == 0:
        mark(folder, "hosting", part.job)
    else:
        wait_until(lambda: marked(folder, "spoken"), "the strangers have spoken")
    before = len(os.listdir("/proc/self/fd"))
    with part.init() as comm:
        comm.barrier()
        assert comm.all_gather(np.array([comm.rank])).ravel().tolist() == [0, 1, 2]
    del comm
    return len(os.listdir("/proc/self/fd")) - before


def test_what_strangers_say_does_not_disturb_a_job_that_starts(processes, tmp_path):
    luck = random.Random(3)
    head, parcel, each = a_real_hello(
        Part(1, 3, f"{tmp_path.name}-{os.getpid()}", "posix_shm", join, (), {}, False)
    )
    assert (head[2:], each) == ((HELLO, 1, 3, 1, each), 2)

    def speak(running):
        wait_until(lambda: marked(tmp_path, "hosting"), "rank 0 is there")
        job = (tmp_path / "hosting").read_text()
        strangers = []
        with open("/dev/null") as file:
            for said, descriptors in wrong_hellos(luck, head, parcel):
                stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                strangers.append(stranger)
                wait_until(lambda s=stranger: s.connect_ex(address(job)) == 0, "rank 0 listens")
                socket.send_fds(stranger, [said], [file.fileno()] * descriptors)
                # It is told what was wrong, and dropped.
                stranger.settimeout(20)
                answer = HEAD.unpack_from(stranger.recv(1 << 16))
                assert answer[2] == ERROR, (said, answer)
                assert stranger.recv(1) == b""
            for _ in range(3):  # these say nothing
                silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                silent.connect(address(job))
                strangers.append(silent)
            strangers.pop().close()
        mark(tmp_path, "spoken")
        while running.still_going():
            time.sleep(0.01)
        for stranger in strangers:
            stranger.close()

    assert processes.run(disturbed_rank, 3, tmp_path, joins=False, meanwhile=speak) == [0, 0, 0]


def wrong_answers(luck, head):
    """What somebody who holds the job's name may say to a rank that comes."""
    magic, version = head[:2]
    for length in (1, 31, 32, 100, 4000):
        yield luck.randbytes(length), 0
    for _ in range(20):
        odd = luck.choice([-1, 0, 1, 3, 1000, 2**31 - 1, -(2**31)])
        count, each = luck.choice([(odd % 2**32, 2), (2, odd % 2**32), (2, 2), (1, 2)])
        body = b"".join(struct.pack("<I", 40) + luck.randbytes(40) for _ in range(2))
        yield HEAD.pack(magic, version, PARCELS, 0, 2, count, each) + body, 4
        yield HEAD.pack(magic, version, PARCELS, odd, 2, 2, 2) + body, 4
        yield HEAD.pack(magic, version, PARCELS, 0, 2, 2, 2) + body[: luck.randrange(80)], 4
        yield (
            HEAD.pack(magic, version, ERROR, odd, 2, 0, 0)
            + struct.pack("<I", odd % 2**32)
            + luck.randbytes(50),
            0,
        )
        yield HEAD.pack(magic, version + 1 + abs(odd) % 100, PARCELS, 0, 2, 2, 2) + body, 4
    yield b"", 0


def come_to_a_stranger(part, folder, answers):
    """Joins again and again where a stranger hosts."""
    found = []
    for number in range(answers):
        wait_until(lambda n=number: marked(folder, f"hosting-{n}"), "somebody hosts")
        error = error_of(join, part, rank=1, size=2, job=f"{folder.name}-{number}", startup_timeout=20)
        found.append((isinstance(error, xccl.Error), repr(error)))
    return found


def test_a_rank_that_comes_to_a_stranger_gets_an_error(processes, tmp_path):
    magic_and_version = a_real_hello(
        Part(1, 2, f"{tmp_path.name}-{os.getpid()}", "posix_shm", join, (), {}, False)
    )[0]
    answers = list(wrong_answers(random.Random(4), magic_and_version))

    def host(running):
        for number, (said, descriptors) in enumerate(answers):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger, open("/dev/null") as file:
                stranger.bind(address(f"{tmp_path.name}-{number}"))
                stranger.listen()
                mark(tmp_path, f"hosting-{number}")
                stranger.settimeout(50)
                guest, _ = stranger.accept()
                with guest:
                    guest.settimeout(50)
                    guest.recv(1 << 16)
                    if said:
                        socket.send_fds(guest, [said], [file.fileno()] * descriptors)

    [found] = processes.run(come_to_a_stranger, 1, tmp_path, len(answers), joins=False, meanwhile=host)
    assert all(typed for typed, _ in found), found


def come_to(part, host):
    """Joins where `host`, a function of a socket that listens under the job's name, answers; returns the error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address(part.job))
        listener.listen()
        found = []
        guest = threading.Thread(target=lambda: found.append(error_of(join, part, startup_timeout=20)))
        guest.start()
        host(listener)
        guest.join()
    return found[0]


def test_another_version_of_the_memory_is_refused_with_both_versions():
    part = Part(1, 2, f"test-version-{os.getpid()}", "posix_shm", join, (), {}, False)
    ours = _core.layout_version

    def answer_as_a_newer_one(listener):
        member, _ = listener.accept()
        with member:
            said = member.recv(1 << 16)
            magic = HEAD.unpack_from(said)[0]
            member.send(HEAD.pack(magic, ours + 5, PARCELS, 0, 2, 2, 2))

    error = come_to(part, answer_as_a_newer_one)
    assert type(error) is xccl.Mismatch
    assert f"its memory layout is version {ours + 5}, ours is {ours}" in str(error)


# --- Another user -----------------------------------------------------------------------------------------------------

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes of another user")
# Both know nothing but the name. The one that comes says a real hello; the one that hosts waits to be come to.
COME = """
guest = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
while guest.connect_ex(sys.argv[1]):
    pass
guest.settimeout(20)
try:
    guest.send(bytes.fromhex(sys.argv[2]))
    print("answered" if guest.recv(1) else "dropped")
except ConnectionError:
    print("dropped")
"""
HOST = """
host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
host.bind(sys.argv[1])
host.listen()
print("hosting", flush=True)
guest = host.accept()[0]
guest.settimeout(20)
print("told nothing" if not guest.recv(1) else "told something")
"""


def as_nobody(program, *arguments):
    """A process of another user, which it becomes itself, for our interpreter need not be that user's to read."""
    become = f"import os, socket, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    line = [sys.executable, "-c", become + program, *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


@as_root
def test_a_process_of_another_user_is_turned_away_and_the_job_starts(processes, tmp_path):
    part = Part(1, 3, f"{tmp_path.name}-{os.getpid()}", "posix_shm", join, (), {}, False)
    head, parcel, _ = a_real_hello(part)

    def intrude(running):
        wait_until(lambda: marked(tmp_path, "hosting"), "rank 0 is there")
        name = "\\0" + address((tmp_path / "hosting").read_text())[1:]
        program = COME.replace("sys.argv[1]", f"'{name}'")
        with as_nobody(program, "", (HEAD.pack(*head) + parcel).hex()) as intruder:
            assert intruder.communicate(timeout=50)[0] == "dropped\n"
        mark(tmp_path, "spoken")

    assert processes.run(disturbed_rank, 3, tmp_path, joins=False, meanwhile=intrude) == [0, 0, 0]


@as_root
def test_a_rank_tells_a_process_of_another_user_nothing():
    part = Part(1, 2, f"test-user-{os.getpid()}", "posix_shm", join, (), {}, False)
    program = HOST.replace("sys.argv[1]", "'\\0" + address(part.job)[1:] + "'")
    with as_nobody(program) as host:
        assert host.stdout.readline() == "hosting\n"
        error = error_of(join, part, startup_timeout=20)
        assert host.communicate(timeout=50)[0] == "told nothing\n"
    assert type(error) is xccl.Error
    assert "held by a process of another user" in str(error)
