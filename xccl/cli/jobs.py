"""The jobs of this user on this host, as their memory files show them, without the ranks' help.

A rank's memory is a file without a name. Whoever runs as the same user finds it among the open files of the rank's
process and opens it there; that needs nothing of the rank, which may be stopped. Of a rank that has died, the file is
still mapped by the others: only root may open it there. What the bytes say is read by csrc/group/observe.cpp.
Used by ps.py. Not here: what is printed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from xccl import _core

_FILE = "/memfd:xccl (deleted)"
_LIBRARY = re.compile(r"/xccl/_core\.[^/]*\.so$|/libxccl\.so[.\d]*$")


@dataclass
class Process:
    """A process of this user."""

    pid: int
    inner_pid: int  #: as it sees itself, in its own PID namespace
    parent: int
    state: str  #: R runs, S and D sleep, T is stopped, Z has ended
    command: str


@dataclass
class Rank:
    """One rank of a job. `seen` is None if its memory cannot be read; `process` None if it has no process."""

    number: int
    seen: dict[str, Any] | None = None
    process: Process | None = None
    #: "present"; "dead"; "closed": it has left in an orderly way; "absent": it has not come yet; "gone": its memory
    #: cannot be read any more, and the others know of no death.
    presence: str = "present"


@dataclass
class Job:
    """Ranks that have met, or that wait for each other under one name."""

    name: str
    size: int
    met: bool
    ranks: list[Rank]
    launcher: Process | None = None


@dataclass
class Report:
    """All that there is to see."""

    jobs: list[Job] = field(default_factory=list)
    #: Processes that have XCCL loaded and no memory that can be seen from outside.
    unseen: list[Process] = field(default_factory=list)
    #: Processes whose XCCL lays out its memory in another way, and that layout's version.
    foreign: list[tuple[Process, int]] = field(default_factory=list)


@dataclass
class _File:
    """A memory file: who holds it open, and what it says."""

    holders: list[Process]
    seen: dict[str, Any]

    def owner(self) -> Process | None:
        # Children that a rank has forked hold its file as well.
        return next((one for one in self.holders if one.inner_pid == self.seen.get("pid")), None)


def survey() -> Report:
    """Looks at all processes of this user."""
    processes = {one.pid: one for one in _processes()}
    files, mapped, loaded = _files(processes)
    report = Report()
    for file in files.values():
        if file.seen["layout_version"] != _core.layout_version:
            report.foreign += [(holder, file.seen["layout_version"]) for holder in file.holders[:1]]
    groups: dict[object, list[_File]] = {}
    for file in files.values():
        if file.seen["layout_version"] == _core.layout_version:
            seen = file.seen
            key = (seen["meeting"] or seen["job"], seen["size"])
            groups.setdefault(key, []).append(file)
    report.jobs = [_job(members, processes) for members in groups.values()]
    report.jobs.sort(key=lambda job: job.name)
    accounted = {holder.pid for file in files.values() for holder in file.holders} | mapped | {os.getpid()}
    for pid in list(accounted):  # launchers have XCCL loaded, too
        accounted.update(one.pid for one in _ancestors(processes.get(pid), processes))
    report.unseen = [processes[pid] for pid in sorted(loaded - accounted)]
    return report


def _job(files: Sequence[_File], processes: dict[int, Process]) -> Job:
    first = files[0].seen
    ranks = []
    dead = {rank for file in files for rank in file.seen["dead"]}
    for file in files:
        owner = file.owner()
        presence = "present"
        if file.seen["state"] == "closed":
            presence = "closed"
        elif owner is None or owner.state in ("Z", "X"):
            presence = "dead"
        ranks.append(Rank(file.seen["rank"], file.seen, owner, presence))
    here = {rank.number for rank in ranks}
    met = bool(first["meeting"])
    for number in sorted(set(range(first["size"])) - here):
        presence = "dead" if number in dead else "gone" if met else "absent"
        ranks.append(Rank(number, presence=presence))
    ranks.sort(key=lambda rank: rank.number)
    return Job(_readable(first["job"]), first["size"], met, ranks, _launcher(ranks, processes))


def _launcher(ranks: Sequence[Rank], processes: dict[int, Process]) -> Process | None:
    """The nearest process of this user that started all of them, if there are several."""
    lines = [_ancestors(rank.process, processes) for rank in ranks if rank.process]
    if len(lines) < 2:
        return None
    common = set.intersection(*({one.pid for one in line} for line in lines))
    return next((one for one in lines[0] if one.pid in common), None)


def _ancestors(process: Process | None, processes: dict[int, Process]) -> list[Process]:
    found: list[Process] = []
    while process and (process := processes.get(process.parent)) and process not in found:
        found.append(process)
    return found


# --- /proc ------------------------------------------------------------------------------------------------------


def _processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):  # it has ended meanwhile
            if os.stat(f"/proc/{name}").st_uid == os.geteuid():
                yield _process(int(name))


def _process(pid: int) -> Process:
    with open(f"/proc/{pid}/status", "rb") as file:
        status = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        command = file.read(4096).rstrip(b"\0").replace(b"\0", b" ")
    inner = status.get(b"NSpid", str(pid).encode()).split()[-1]
    return Process(
        pid, int(inner), int(status[b"PPid"]), status[b"State"].split()[0].decode(), _readable(command)
    )


def _files(processes: dict[int, Process]) -> tuple[dict[tuple[int, int], _File], set[int], set[int]]:
    """The memory files of all these processes; which processes map one; which have XCCL loaded."""
    files: dict[tuple[int, int], _File] = {}
    mapped: set[int] = set()
    loaded: set[int] = set()
    mappings: dict[tuple[int, int], list[str]] = {}
    for process in processes.values():
        for path in _open_files(process.pid):
            _add(files, path, process)
        for place, which, name in _maps(process.pid):
            if name == _FILE:
                mapped.add(process.pid)
                mappings.setdefault(which, []).append(f"/proc/{process.pid}/map_files/{place}")
            elif _LIBRARY.search(name):
                loaded.add(process.pid)
    for which, places in mappings.items():
        for place in places:
            if which not in files:  # nobody holds it open: its owner has died, or has let go of it
                _add(files, place, None)
    return files, mapped, loaded


def _open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # another's, or ended meanwhile
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}") == _FILE:
                    yield f"{folder}/{name}"


def _maps(pid: int) -> Iterator[tuple[str, tuple[int, int], str]]:
    """(addresses, (device, inode), path) of each mapping of a file."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6:
                device = os.makedev(*(int(part, 16) for part in fields[3].split(":")))
                # As map_files names it: without leading zeros.
                place = "-".join(f"{int(end, 16):x}" for end in fields[0].split("-"))
                yield place, (device, int(fields[4])), fields[5]


def _add(files: dict[tuple[int, int], _File], path: str, holder: Process | None) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            facts = os.fstat(fd)
            which = (facts.st_dev, facts.st_ino)
            if which not in files:
                seen = _core.observe(fd)
                if seen is None:
                    return  # another program's, or not ready yet
                files[which] = _File([], seen)
            if holder:
                files[which].holders.append(holder)
        finally:
            os.close(fd)


def _readable(text: bytes) -> str:
    """For a terminal: nothing in it moves the cursor."""
    decoded = text.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in decoded)


def readable_operation(seen: dict[str, Any]) -> str:
    """Name and number of the latest operation of a rank; "" if there was none."""
    name = _readable(seen["op"])
    if name in ("init", "close") or not name:
        return name
    return f"{name} #{seen['seq']}"


def readable_phase(seen: dict[str, Any]) -> str:
    """In which phase of its operation a rank waits."""
    return _readable(seen["phase"])
