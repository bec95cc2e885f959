"""Processes below this one, as /proc tells.

Called by `processes` (which must not survive?). Only reads; signals are sent elsewhere.
"""

from __future__ import annotations

import os


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


# Its place in /proc/PID/stat counted after the name, which may itself hold spaces and brackets.
_PARENT = 1


def _stat_field(pid: int, place: int, default: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[place])
    except OSError:
        return default
