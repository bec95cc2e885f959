"""Plays rounds one after the other, kills whom their schedules say, and looks at what is left behind.

Not here: the command line and what it prints (__main__.py), what ranks do (play.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from growth import Taken, grown
from ranks import Part, Pool, Running, marked

from soak.play import play
from soak.schedule import Schedule, schedule

ENOUGH_ROUNDS = 40  # of one process, to tell growth from settling down
MOST_GROWTH = 8 << 20  # bytes: rounds are of different sizes


class RoundFailed(Exception):
    """Its text says what happened on each rank."""


class Rounds:
    """Counts, over all rounds. The processes play many rounds each; those that are killed are replaced."""

    def __init__(self) -> None:
        self.played = 0
        self.kills = 0
        self.counts: Counter[str] = Counter()
        self._pool = Pool()
        self._taken: dict[int, list[Taken]] = defaultdict(list)
        self._names_before = set(os.listdir("/dev/shm"))

    def play(self, seed: int) -> None:
        """One round. Raises RoundFailed."""
        plan = schedule(seed)
        # The first process lives on, so that it gets old; it is not always the same rank.
        survivors = [rank for rank in range(plan.size) if rank not in plan.victims]
        first = survivors[seed % len(survivors)]
        order = [first, *(rank for rank in range(plan.size) if rank != first)]
        with tempfile.TemporaryDirectory() as folder:
            parts = [
                Part(
                    rank,
                    plan.size,
                    f"soak-{os.getpid()}-{self.played}",
                    "posix_shm",
                    play,
                    (seed, Path(folder)),
                    plan.environ,
                    joins=False,
                )
                for rank in order
            ]
            try:
                found = self._pool.perform(parts, lambda running: _kill(plan, order, Path(folder), running))
            except AssertionError as error:  # a rank hangs
                raise RoundFailed(str(error)) from error
        self.played += 1
        self.kills += len(plan.victims)
        wrong = []
        for outcome in found:
            if outcome.rank in plan.victims:
                if outcome.exitcode != -signal.SIGKILL:
                    wrong.append(f"rank {outcome.rank} was to be killed: {outcome.trace or outcome.exitcode}")
            elif not outcome.fine:
                wrong.append(
                    f"rank {outcome.rank} of {plan.size}: exit code {outcome.exitcode}\n{outcome.trace}"
                )
            else:
                counts, taken = outcome.value
                self.counts.update(counts)
                self._taken[taken.pid].append(taken)
            wrong += [f"rank {outcome.rank} left behind: {what}" for what in outcome.left_behind]
        # First the causes, then those who were told of them.
        wrong.sort(key=lambda text: "PeerFailed" in text)
        if wrong:
            raise RoundFailed("\n".join(wrong))

    def close(self) -> list[str]:
        """Ends the processes. What has grown, or is left of them."""
        self._pool.close()
        wrong = [f"/dev/shm/{name} is left" for name in set(os.listdir("/dev/shm")) - self._names_before]
        wrong += [f"process {pid} is left" for pid in _children()]
        for pid, rounds in self._taken.items():
            if len(rounds) >= ENOUGH_ROUNDS:
                found = grown(rounds, MOST_GROWTH)
                wrong += [f"process {pid}, {len(rounds)} rounds: {what}" for what in found]
        return wrong

    def oldest(self) -> list[Taken]:
        """What the process that has played most had after each of its rounds."""
        return max(self._taken.values(), key=len, default=[])


def _kill(plan: Schedule, order: list[int], folder: Path, running: Running) -> None:
    """Kills each victim a moment after it has come to its step."""
    for step in plan.steps:
        if step.victim is None:
            continue
        while not marked(folder, f"step-{step.number}"):
            if not running.still_going():
                return
            time.sleep(0.001)
        time.sleep(step.delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pids[order.index(step.victim)], signal.SIGKILL)


def _children() -> list[int]:
    """Of this process, but for the one that multiprocessing keeps."""
    tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split() if int(pid) != tracker] if path.exists() else []
