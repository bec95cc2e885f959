"""The command line: `python -m xccl run | ps | doctor | demo | bench`, also installed as `xccl`.

Each command is a module here with `configure(parser)` and `execute(arguments) -> exit code`. Nothing here
computes; what a command does lies in the package that it is about.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from xccl.cli import bench, demo, doctor, ps, run

_COMMANDS = {"run": run, "ps": ps, "doctor": doctor, "demo": demo, "bench": bench}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; `argv` is without the program's name. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="xccl", description="Communication between the ranks of a mixture-of-experts model."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, module in _COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.DESCRIPTION)
        module.configure(command)
        command.set_defaults(execute=module.execute)
    arguments = parser.parse_args(argv)
    if arguments.version:
        return _print_version()
    if not hasattr(arguments, "execute"):
        parser.print_help()
        return 2
    return int(arguments.execute(arguments))


def entry_point() -> None:
    """What the installed script `xccl` calls."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough: the end that other programs come to without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _print_version() -> int:
    from xccl import _core

    print(f"xccl {_core.__version__}")
    return 0
