"""`python -m xccl doctor`: explains this machine and what XCCL will use on it. Exit code 1 if XCCL cannot run
here.

The facts are gathered in xccl/cli/facts.py; here they are judged and printed, as text or JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import textwrap
from collections.abc import Callable
from typing import Any

from xccl.errors import Error

SUMMARY = "explain this machine and what XCCL will use on it"
DESCRIPTION = (
    "Explains this machine and what XCCL will use on it. The exit code is 1 if XCCL cannot run here."
)

_WIDTH = 110


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "-n", type=int, default=None, metavar="N", dest="ranks", help="explain a job of N ranks"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Prints the report."""
    report = examine(arguments.ranks)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 1 if report["problems"] else 0


def examine(ranks: int | None = None) -> dict[str, Any]:
    """All facts by section, then "problems", which keep XCCL from running, and "advice"."""
    try:
        from xccl.cli import facts
    except ImportError as error:
        return {"problems": [f"the native part of XCCL cannot be loaded: {error}; install the package again"]}
    ranks = ranks or len(os.sched_getaffinity(0))
    report: dict[str, Any] = {
        "software": _tried(facts.software),
        "machine": _tried(facts.machine),
        "memory": _tried(facts.memory),
        "cores": _tried(facts.cores),
        "launcher": _tried(facts.launcher),
        "providers": _tried(facts.providers),
        "waiting": _tried(facts.waiting, ranks),
        "settings": _tried(facts.settings),
    }
    report["problems"] = _problems(report, facts.open_files_needed(ranks))
    report["advice"] = _advice(report)
    return report


def _tried(look: Callable[..., dict[str, Any]], *subject: int) -> dict[str, Any]:
    # A setting with a senseless value, say: one section's problem, and no reason to keep the others back.
    try:
        return look(*subject)
    except Error as error:
        return {"problem": str(error)}


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines: list[str] = []
    for section, content in report.items():
        if section in ("problems", "advice"):
            continue
        lines += [section, *_table(content), ""]
    lines += [line for advice in report.get("advice", ()) for line in _wrapped("advice: ", advice)]
    lines += [line for problem in report["problems"] for line in _wrapped("problem: ", problem)]
    lines.append("XCCL cannot run here as things are." if report["problems"] else "XCCL can run here.")
    return "\n".join(lines)


def _problems(report: dict[str, Any], files_needed: int) -> list[str]:
    problems = []
    processes = report["providers"].get("posix_shm", "no: it was not built in")
    if processes != "available":
        problems.append(f"ranks in different processes cannot share memory: {processes.removeprefix('no: ')}")
    told = [section["problem"] for section in report.values() if "problem" in section]
    problems += dict.fromkeys(told)  # once, though several sections may have met it
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < files_needed:
        problems.append(
            f"a rank may need {files_needed} open files, the hard limit is {hard}: raise it (ulimit -Hn)"
        )
    return problems


def _advice(report: dict[str, Any]) -> list[str]:
    advice = []
    usable, of_machine = (report["cores"].get(what) for what in ("usable here", "of the machine"))
    if usable and of_machine and usable < of_machine:
        advice.append(
            f"this process may use {usable} of {of_machine} cores (affinity or a CPU quota): more ranks than "
            "that share them, which works but is slower"
        )
    if report["launcher"] == {"seen": "none"}:
        advice.append("no launcher is seen; start ranks with: python -m xccl run -n N program.py")
    return advice


def _table(content: dict[str, Any]) -> list[str]:
    """Lines "  name   value" in columns; a setting is told as its value, then what it means."""
    width = max((len(name) for name in content), default=0)
    settings = [value for value in content.values() if isinstance(value, dict)]
    value_width = max((len(_setting(value)) for value in settings), default=0)
    lines = []
    for name, value in content.items():
        start = f"  {name:<{width}}  "
        if isinstance(value, dict):
            lines += _wrapped(start + f"{_setting(value):<{value_width}}  ", value["meaning"])
        else:
            lines += _wrapped(start, str(value))
    return lines


def _setting(setting: dict[str, str]) -> str:
    changed = setting["value"] != setting["default"]
    return f"{setting['value']} (default {setting['default']})" if changed else setting["value"]


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False
    )
