"""`python -m xccl ps`: the jobs of this user on this host, and for each rank what it does and for whom it waits.

Read from outside; the ranks need not help. Found and read in xccl/cli/jobs.py; here it is put into words.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from xccl import _core
from xccl.cli.jobs import Job, Rank, Report, readable_operation, readable_phase, survey
from xccl.wait_stats import WaitStats

SUMMARY = "what the ranks of this user's jobs do, and for whom they wait"
DESCRIPTION = (
    "Shows the jobs of this user on this host: their ranks, processes, memory, and for each rank what it waits for, "
    "since when and for whom. It reads the ranks' memory without their help, so they may be stopped or stuck. "
    "The exit code is 0 also when there are no jobs."
)

_CLEAR = "\x1b[H\x1b[2J"
_MOST_LISTED = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--json", action="store_true", help="the same as JSON; with --watch, one line each time"
    )
    parser.add_argument("--waits", action="store_true", help="also who waited for whom, in every job")
    parser.add_argument(
        "--watch",
        type=_interval,
        nargs="?",
        const=1.0,
        default=None,
        metavar="SECONDS",
        help="show it again and again, each second or every so many seconds, until Ctrl-C",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Prints what there is to see, once or again and again."""
    if arguments.watch is None:
        print(_shown(arguments, compact=False))
        return 0
    try:
        while True:
            text = _shown(arguments, compact=True)
            on_terminal = sys.stdout.isatty() and not arguments.json
            stamp = "" if arguments.json else time.strftime("%H:%M:%S\n")
            print(f"{_CLEAR if on_terminal else ''}{stamp}{text}", flush=True)
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return 0


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, from 0.05 to 86400")
    return seconds


def _shown(arguments: argparse.Namespace, compact: bool) -> str:
    report = survey()
    if arguments.json:
        return json.dumps(as_json(report, arguments.waits), indent=None if compact else 2)
    return as_text(report, arguments.waits)


def as_text(report: Report, waits: bool = False) -> str:
    """The report for people."""
    lines: list[str] = []
    for job in report.jobs:
        lines += _job_lines(job)
        if waits and job.met:
            lines += ["", *(str(wait_stats(job)).splitlines())]
        lines.append("")
    for process, version in report.foreign:
        lines.append(
            f"process {process.pid}: memory layout {version}, this XCCL reads layout {_core.layout_version}; "
            f"use the ps of that installation: {process.command}"
        )
    for process in report.unseen:
        lines.append(
            f"process {process.pid}: XCCL is loaded, but there is no memory to see: it has not joined a job, or has "
            f"left it, or its ranks are threads (provider local), which only it can tell: {process.command}"
        )
    if not report.jobs:
        lines.insert(0, f"no XCCL job of user {_user()} has shared memory on this host")
    return "\n".join(lines).rstrip("\n")


def _job_lines(job: Job) -> list[str]:
    how = "met" if job.met else "waiting for each other"
    command = next((rank.process.command for rank in job.ranks if rank.process), "")
    lines = [
        f"job {job.name or '(no name)'}: {job.size} {'rank' if job.size == 1 else 'ranks'}, {how}; {command}"
    ]
    if job.launcher:
        lines.append(f"started by process {job.launcher.pid}: {job.launcher.command}")
    lines.append(f"{'rank':>4} {'pid':>8} {'memory':>9} {'arrays':>9}  what it does")
    for rank in job.ranks:
        pid = str(rank.process.pid) if rank.process else "-"
        memory, arrays = ("-", "-") if rank.seen is None else (_size(rank.seen[k]) for k in _MEMORY)
        lines.append(f"{rank.number:>4} {pid:>8} {memory:>9} {arrays:>9}  {doing(job, rank)}")
    return lines


_MEMORY = ("file_bytes", "array_bytes")

_NOT_PRESENT = {
    "absent": "has not come yet",
    "closed": "has closed",
    "gone": "its memory cannot be read: it has left, or has died and nobody has noticed yet",
}


def doing(job: Job, rank: Rank) -> str:
    """What a rank does, in words."""
    if rank.presence in _NOT_PRESENT:
        return _NOT_PRESENT[rank.presence]
    seen = rank.seen
    if seen is None:
        return "dead"
    if rank.presence == "dead":
        if not readable_operation(seen):
            return "dead"
        where = "in" if seen["members"] else "after"
        return f"dead, {where} {readable_operation(seen)}"
    stopped = "stopped by a signal, " if rank.process and rank.process.state in ("T", "t") else ""
    operation, ago = readable_operation(seen), _seconds(seen["op_seconds"])
    failed = f"; it knows that {_ranks(seen['failed'], job)} failed" if seen["failed"] else ""
    if not seen["members"]:
        after = f", after {operation}" if operation not in ("", "init") else ": no call yet"
        return f"{stopped}outside XCCL for {ago}{after}{failed}"
    among = f" of {seen['members']} ranks" if seen["members"] != job.size else ""
    text = f"{stopped}in {operation}{among} for {ago}"
    if seen["wait_seconds"] is not None:
        text += f"; {readable_phase(seen)} {_seconds(seen['wait_seconds'])}, for {_whom(job, rank)}"
    return text + failed


def waits_for(job: Job, rank: Rank) -> list[int]:
    """The ranks that a rank waits for now, by number; none while it does not, or while anybody will do."""
    if rank.presence != "present" or rank.seen is None or rank.seen["wait_seconds"] is None:
        return []
    if not job.met:
        return [other.number for other in job.ranks if other.presence == "absent"]
    return [number for number in rank.seen["waits_for"] if number != rank.number]


def _whom(job: Job, rank: Rank) -> str:
    whom = waits_for(job, rank)
    return _ranks(whom, job) if whom else "anybody"


def _ranks(numbers: Sequence[int], job: Job) -> str:
    if len(numbers) == job.size - 1 and len(numbers) > _MOST_LISTED:
        return f"all {len(numbers)} others"
    listed = ", ".join(map(str, numbers[:_MOST_LISTED]))
    more = f" and {len(numbers) - _MOST_LISTED} more" if len(numbers) > _MOST_LISTED else ""
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {listed}{more}"


def wait_stats(job: Job) -> WaitStats:
    """Who waited for whom; nothing is known of ranks whose memory cannot be read."""
    size = job.size
    count = np.zeros((size, size), np.int64)
    total, longest = np.zeros((size, size)), np.zeros((size, size))
    for rank in job.ranks:
        if rank.seen is not None:
            for matrix, row in zip((count, total, longest), rank.seen["waited"], strict=True):
                matrix[rank.number] = row[0]
    return WaitStats(count, total, longest)


def as_json(report: Report, waits: bool = False) -> dict[str, Any]:
    """The report for programs. Times are in seconds before now, memory is in bytes."""
    return {
        "layout_version": _core.layout_version,
        "jobs": [_job_json(job, waits) for job in report.jobs],
        "foreign": [
            {"pid": one.pid, "command": one.command, "layout_version": v} for one, v in report.foreign
        ],
        "unseen": [{"pid": one.pid, "command": one.command} for one in report.unseen],
    }


def _job_json(job: Job, waits: bool) -> dict[str, Any]:
    out = {
        "job": job.name,
        "size": job.size,
        "met": job.met,
        "launcher": job.launcher.pid if job.launcher else None,
        "ranks": [_rank_json(job, rank) for rank in job.ranks],
    }
    if waits:
        stats = wait_stats(job)
        names = ("count", "total", "longest")
        out["waits"] = {name: getattr(stats, name).tolist() for name in names}
    return out


def _rank_json(job: Job, rank: Rank) -> dict[str, Any]:
    seen = rank.seen
    out: dict[str, Any] = {
        "rank": rank.number,
        "presence": rank.presence,
        "pid": rank.process.pid if rank.process else None,
        "stopped": bool(rank.process and rank.process.state in ("T", "t")),
        "text": doing(job, rank),
    }
    if seen is None:
        return out
    waiting = rank.presence == "present" and seen["wait_seconds"] is not None
    return out | {
        "memory_bytes": seen["file_bytes"],
        "array_bytes": seen["array_bytes"],
        "operation": readable_operation(seen) or None,
        "inside": bool(seen["members"]),
        "operation_seconds": seen["op_seconds"],
        "phase": readable_phase(seen) if waiting else None,
        "wait_seconds": seen["wait_seconds"] if waiting else None,
        "waits_for": waits_for(job, rank),
        "knows_dead": seen["dead"],
        "knows_failed": seen["failed"],
    }


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
