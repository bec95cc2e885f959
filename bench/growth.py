"""How the instructions of one dispatch and one combine grow with the number of ranks, counted, not timed.

32 tokens, each to 8 of 256 experts, so every rank has 256 rows whatever the number of ranks; what grows is the work for
each other rank. Rank 0's calls are counted by valgrind's callgrind while the others, threads of one process, have
published already, so that it waits for nobody. Counts are the same on every machine with the same compiler.

    python bench/growth.py [--ranks 8 16 32 64 128 256]

Builds bench/native/growth_count.cpp, as it is shipped, in build/release. Needs valgrind (Debian: valgrind), cmake and
ninja. Prints a table and writes it to bench/results/growth.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "build" / "release" / "tests" / "native" / "growth_count"
RESULT = ROOT / "bench" / "results" / "growth.md"
CALLS = ("dispatch", "combine")


def build() -> None:
    for command in (
        ["cmake", "--preset", "release"],
        ["cmake", "--build", "--preset", "release", "--target", "growth_count"],
    ):
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def instructions(ranks: int, call: str) -> int:
    """Of one call of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={folder}/out",
            "--max-threads=1000",
            "--collect-atstart=no",
            f"--toggle-collect=*measured_{call}*",
            str(PROGRAM),
            str(ranks),
            call,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found or found[1] == "0":
        sys.exit(f"counting {call} among {ranks} ranks failed:\n{done.stderr[-2000:]}")
    return int(found[1])


def table(ranks: list[int], counts: dict[str, list[int]]) -> str:
    lines = ["| ranks | " + " | ".join(CALLS) + " |", "|---|---|---|"]
    for i, number in enumerate(ranks):
        lines.append(f"| {number} | " + " | ".join(f"{counts[call][i]:,}" for call in CALLS) + " |")
    fits = [np.polyfit(ranks, counts[call], 1) for call in CALLS]
    lines.append("| about | " + " | ".join(f"{a:,.0f} + {b:.0f} x ranks" for b, a in fits) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    ranks = options.parse_args().ranks
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; it counts the instructions (Debian: apt-get install valgrind)")
    if len(ranks) < 2 or min(ranks) < 1:
        sys.exit("--ranks: expected two numbers of ranks or more, each at least 1")
    build()
    counts: dict[str, list[int]] = {call: [] for call in CALLS}
    for number in ranks:
        for call in CALLS:
            print(f"\r\033[Kcounting {call} among {number} ranks", end="", file=sys.stderr, flush=True)
            counts[call].append(instructions(number, call))
    print("\r\033[K", end="", file=sys.stderr)
    found = table(ranks, counts)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(f"# Instructions of a rank\n\n{found}")
    print(found)


if __name__ == "__main__":
    main()
