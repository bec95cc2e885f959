"""`python -m xccl bench`: how long dispatch, combine and messages take on this machine, beside a copy of as many bytes.

The short version of bench/ in the repository, which compares with other libraries. Here are the arguments and the
table; what a rank does is in xccl/cli/bench_ranks.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

SUMMARY = "measure dispatch, combine and messages here, beside a plain copy"
DESCRIPTION = """Measures on this machine how long dispatch and combine take (experts leave the rows as they are), and a
message one way, each beside a plain copy of as many bytes by every rank at the same time. Results are checked. Use it
on a quiet machine: the ranks need a core each."""


@dataclass(frozen=True)
class Line:
    """One figure, in seconds."""

    what: str
    median: float
    fastest: float
    copy: float | None = None  #: a copy of as many bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("-n", type=_positive, default=2, metavar="N", dest="ranks", help="ranks (default: 2)")
    parser.add_argument(
        "--tokens",
        type=_positive,
        nargs="+",
        default=[128, 4096],
        metavar="T",
        help="tokens of each rank; one measurement for each number (default: 128 4096)",
    )
    parser.add_argument("--hidden", type=_positive, default=7168, help="elements of a row (default: 7168)")
    parser.add_argument("--experts", type=_positive, default=256, help="experts in all (default: 256)")
    parser.add_argument("--topk", type=_positive, default=8, help="experts of a token (default: 8)")
    parser.add_argument(
        "--seconds", type=_seconds, default=2.0, help="that each measurement is meant to take (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON, in seconds")


def execute(arguments: argparse.Namespace) -> int:
    """Measures, shows, says whether the results were right."""
    from xccl.launch.spawn import SpawnError

    if arguments.topk > arguments.experts:
        print(
            f"xccl bench: --topk {arguments.topk} is more than --experts {arguments.experts}", file=sys.stderr
        )
        return 2
    before = _surroundings(arguments.ranks)
    lines: list[Line] = []
    try:
        for subject, measured in _subjects(arguments):
            _progress(f"measuring {subject} ...")
            lines += measured()
    except SpawnError as error:
        _progress("")
        print(f"xccl bench: {error}", file=sys.stderr)
        return 1
    _progress("")
    if arguments.json:
        print(json.dumps({"machine": before, "lines": [asdict(line) for line in lines]}, indent=2))
    else:
        print(as_text(before, lines))
    return 0


def _subjects(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """What is measured, and how: each in ranks of its own."""
    import xccl
    from xccl.cli import bench_ranks

    ranks, seconds = arguments.ranks, arguments.seconds

    def barrier() -> list[Line]:
        return [line_of("barrier", xccl.spawn(bench_ranks.barrier, ranks, (seconds / 4,)))]

    def message(size: int) -> list[Line]:
        told = xccl.spawn(bench_ranks.message, 2, (size, seconds / 4))
        copies = [rank["copies"] for rank in told]
        return [
            line_of(f"message of {_bytes(size)}, one way", [rank["messages"] for rank in told[:1]], copies)
        ]

    def moe(tokens: int) -> list[Line]:
        shape = bench_ranks.Shape(tokens, arguments.hidden, arguments.experts, arguments.topk)
        told = xccl.spawn(bench_ranks.moe, ranks, (shape, seconds))
        copies = [rank["copy"] for rank in told]
        return [
            line_of(f"{what}, {tokens} tokens a rank", [rank[what] for rank in told], copies)
            for what in ("dispatch", "combine")
        ]

    yield "barrier", barrier
    for size in (8, 64 << 10, 16 << 20):
        yield f"messages of {_bytes(size)}", partial(message, size)
    for tokens in arguments.tokens:
        yield f"dispatch and combine, {tokens} tokens a rank", partial(moe, tokens)


def line_of(what: str, spans: Sequence[Any], copies: Sequence[Any] | None = None) -> Line:
    """From what each rank told: spans (start, end, count) in ns, one for each round."""
    seconds = rounds(spans)
    copy = statistics.median(rounds(copies)) if copies else None
    return Line(what, statistics.median(seconds), min(seconds), copy)


def rounds(spans: Sequence[Any]) -> list[float]:
    """Seconds of each round: from the first rank's start to the last rank's end."""
    return [
        (max(end for _, end, _ in of_ranks) - min(start for start, _, _ in of_ranks)) / 1e9 / of_ranks[0][2]
        for of_ranks in zip(*spans, strict=True)
    ]


def as_text(machine: dict[str, Any], lines: Sequence[Line]) -> str:
    """The table for people."""
    width = max(len(line.what) for line in lines)
    out = [
        f"XCCL {machine['xccl']}, {machine['ranks']} ranks on {machine['cores']} cores, kernels {machine['kernels']}"
        + (
            f", {machine['round trip ns']:.0f} ns from core to core and back"
            if machine["round trip ns"]
            else ""
        ),
        "",
        f"{'':{width}}  {'median':>9}  {'fastest':>9}  {'plain copy':>10}  {'of that':>7}",
    ]
    for line in lines:
        copy = duration(line.copy) if line.copy else "-"
        ratio = f"{line.median / line.copy:.2f} x" if line.copy else "-"
        median, fastest = duration(line.median), duration(line.fastest)
        out.append(f"{line.what:{width}}  {median:>9}  {fastest:>9}  {copy:>10}  {ratio:>7}")
    if machine["ranks"] > machine["cores"]:
        out += [
            "",
            "There are more ranks than cores: that works, and takes as much longer as ranks share a core.",
        ]
    return "\n".join([*out, "", "All results were right."])


def duration(seconds: float) -> str:
    """With three figures."""
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _surroundings(ranks: int) -> dict[str, Any]:
    from xccl import _core

    cores = sorted(os.sched_getaffinity(0))
    trip = _core.cache_line_round_trip_ns(cores[0], cores[1]) if len(cores) > 1 else 0.0
    return {
        "xccl": _core.__version__,
        "ranks": ranks,
        "cores": _core.machine()["usable_cores"],
        "kernels": _core.kernels(),
        "round trip ns": max(trip, 0.0),
    }


def _progress(text: str) -> None:
    """One line that the next replaces; nothing if nobody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _bytes(size: int) -> str:
    for unit, length in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= length:
            return f"{size // length} {unit}"
    return f"{size} B"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError("expected more than 0 and less than 3600 seconds")
    return value
