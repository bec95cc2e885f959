"""`python -m xccl doctor`: explains this machine and what XCCL will use on it. Exit code 1 if XCCL cannot run
here.

The facts are gathered in xccl/cli/facts.py; here they are judged and printed, as text or JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import textwrap
from typing import Any

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
    cores = facts.cores()
    ranks = ranks or cores["usable here"]
    report: dict[str, Any] = {
        "software": facts.software(),
        "machine": facts.machine(),
        "memory": facts.memory(),
        "cores": cores,
        "launcher": facts.launcher(),
        "providers": facts.providers(),
        "waiting": facts.waiting(ranks),
        "settings": facts.settings(),
    }
    report["problems"] = _problems(report, facts.open_files_needed(ranks))
    report["advice"] = _advice(report)
    return report


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
    if "problem" in report["launcher"]:
        problems.append(report["launcher"]["problem"])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < files_needed:
        problems.append(
            f"a rank may need {files_needed} open files, the hard limit is {hard}: raise it (ulimit -Hn)"
        )
    return problems


def _advice(report: dict[str, Any]) -> list[str]:
    advice = []
    usable, of_machine = report["cores"]["usable here"], report["cores"]["of the machine"]
    if of_machine is not None and usable < of_machine:
        advice.append(
            f"this process may use {usable} of {of_machine} cores (affinity or a CPU quota): more ranks than "
            "that share them, which works but is slower"
        )
    if report["launcher"] == {"seen": "none"}:
        advice.append("no launcher is seen; start ranks with: python -m xccl run -n N program.py")
    return advice


def _table(content: dict[str, Any]) -> list[str]:
    """Lines "  name   value", values in one column, settings and other nested facts in lines of their own."""
    width = max((len(name) for name in content), default=0)
    lines = []
    for name, value in content.items():
        if isinstance(value, dict) and "meaning" in value:
            changed = "" if value["value"] == value["default"] else f" (default {value['default']})"
            value = f"{value['value']}{changed}: {value['meaning']}"
        elif isinstance(value, dict):
            value = ", ".join(f"{kind} {fact}" for kind, fact in value.items())
        lines += _wrapped(f"  {name:<{width}}  ", str(value))
    return lines


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False
    )
