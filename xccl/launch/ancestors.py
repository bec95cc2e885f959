"""Processes above and below this one, as /proc tells.

Called by `environment` (who launched this rank?) and by `run` (which processes must not survive?). Only
reads; signals are sent elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def launching_process(environ: Mapping[str, str], names: Sequence[str]) -> str:
    """A text that names the process which started this rank and its siblings, and no other process of this
    host.

    `names` are the variables that make a rank what it is. A wrapper script between the launcher and this
    process has them too, with the same values; the nearest ancestor that has not is the launcher.
    """
    wanted = {name: environ.get(name) for name in names}
    pid = os.getppid()
    while pid > 1 and _variables_of(pid, names) == wanted:
        pid = _stat_field(pid, _PARENT, default=0)
    # Process ids come again, and containers that share a network each have their own: so also the start and
    # the id space in which the number is meant.
    return f"{pid} started {_stat_field(pid, _START, default=0)} in {os.stat('/proc/self/ns/pid').st_ino}"


def descendants(of: int) -> list[int]:
    """The ids of all processes below process `of` that exist now, parents before their children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(_stat_field(int(name), _PARENT, default=0), []).append(int(name))
    found: list[int] = []
    todo = [of]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


# Places in /proc/PID/stat counted after the name, which may itself hold spaces and brackets.
_PARENT = 1
_START = 19


def _stat_field(pid: int, place: int, default: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[place])
    except OSError:
        return default


def _variables_of(pid: int, names: Sequence[str]) -> dict[str, str | None] | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    except OSError:
        return None  # another user's process cannot be part of this rank
    values = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    return {name: values.get(name) for name in names}
