"""`python -m xccl run`: reads the arguments; the launcher itself is xccl/launch/run.py."""

from __future__ import annotations

import argparse
import sys

from xccl.launch.run import Options, program, run

SUMMARY = "start a program in several ranks on this host"
DESCRIPTION = """Starts N copies of a program, each a rank that xccl.init() recognises, and ends them together:
if one fails, the others are ended, the first failure is shown last, and its exit code is returned (128 + n
for signal n). Output is passed on in whole lines; rank 0 reads the standard input. OMP_NUM_THREADS is set to
a rank's share of the cores unless you have set it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("-n", type=_positive, required=True, metavar="N", dest="size", help="number of ranks")
    parser.add_argument("--job", metavar="NAME", help="name by which the ranks meet (default: a new one)")
    parser.add_argument(
        "--tag-output",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="put the rank before every line, as [3]",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="from asking a rank to end (SIGTERM) to killing it (default: 5)",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="the program is a Python module")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="program [argument ...]",
        help="a .py file, run by this Python; or any executable",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Starts the ranks and waits for their end."""
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words:
        print("xccl run: which program? Example: python -m xccl run -n 4 program.py", file=sys.stderr)
        return 2
    try:
        command = program(words, arguments.module)
    except FileNotFoundError as missing:
        print(f"xccl run: there is no file {missing.filename!r}", file=sys.stderr)
        return 2
    options = Options(arguments.size, arguments.job, arguments.tag_output, arguments.grace)
    return run(command, options)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least one rank is needed")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return value
