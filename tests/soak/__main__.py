"""The command line of the long run: `make soak`, or in the folder tests/: python -m soak --minutes 10."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator

from soak.rounds import RoundFailed, Rounds
from soak.schedule import schedule


def main() -> int:
    """0 if all was right."""
    options = _options()
    base = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    if options.plan:
        print(schedule(base))
        return 0
    print(f"soak: seeds from {base}; every round is replayed by its own: make soak SEED=...", flush=True)
    rounds, began = Rounds(), time.monotonic()
    failure = ""
    try:
        for seed in _seeds(options, base, began):
            try:
                rounds.play(seed)
            except RoundFailed as error:
                failure = f"soak: FAILED\n{error}\n{schedule(seed)}\nreplay with: make soak SEED={seed}"
                break
            _progress(rounds, began, seed)
    finally:
        left = rounds.close()
    _summary(rounds, began)
    if left and not failure:
        failure = "\n".join(
            ["soak: FAILED", *left, f"replay with: make soak SEED={base} ROUNDS={rounds.played}"]
        )
    print(failure or "soak: all results right, nothing left behind", flush=True)
    return 1 if failure else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, help="how long to go on; 10, unless a seed or rounds are given"
    )
    parser.add_argument("--rounds", type=int, help="how many rounds; one, if a seed is given and no minutes")
    parser.add_argument("--seed", type=int, help="of the first round; each further one is 1 more")
    parser.add_argument(
        "--times", type=int, help="play the round of --seed that often, for what depends on timing"
    )
    parser.add_argument("--plan", action="store_true", help="print the round of --seed, and do nothing")
    options = parser.parse_args()
    if options.seed is not None and options.seed < 0:
        parser.error(f"--seed {options.seed}: expected 0 or more")
    if (options.times or options.plan) and options.seed is None:
        parser.error("--times and --plan need a --seed")
    return options


def _seeds(options: argparse.Namespace, base: int, began: float) -> Iterator[int]:
    if options.times:
        yield from itertools.repeat(base, options.times)
        return
    rounds, minutes = options.rounds, options.minutes
    if minutes is None and rounds is None:
        rounds, minutes = (None, 10.0) if options.seed is None else (1, None)
    for number in itertools.count() if rounds is None else range(rounds):
        if minutes is not None and time.monotonic() - began > minutes * 60:
            return
        yield base + number


_last_line = 0.0


def _progress(rounds: Rounds, began: float, seed: int) -> None:
    """A line now and then; on a terminal, always the same line."""
    global _last_line
    terminal, now = sys.stdout.isatty(), time.monotonic()
    if now - _last_line < (0.2 if terminal else 10.0):
        return
    _last_line = now
    print(f"{_state(rounds, began)}, seed {seed}", end="\r" if terminal else "\n", flush=True)


def _state(rounds: Rounds, began: float) -> str:
    elapsed = time.monotonic() - began
    operations = sum(rounds.counts.values())
    return f"{elapsed:6.0f} s  {rounds.played} rounds, {operations} operations, {rounds.kills} kills"


def _summary(rounds: Rounds, began: float) -> None:
    print(_state(rounds, began))
    for name, count in sorted(rounds.counts.items()):
        print(f"  {name:18} {count:8}")
    if history := rounds.oldest():
        first, last = history[0], history[-1]
        print(
            f"the oldest process after {len(history)} rounds: memory {first.memory >> 20} -> {last.memory >> 20} MiB, "
            f"descriptors {first.descriptors} -> {last.descriptors}, mappings {first.mappings} -> {last.mappings}"
        )


if __name__ == "__main__":
    sys.exit(main())
