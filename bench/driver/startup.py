"""Measures how long jobs take to start: every sample is a new group, in turn as in interleave.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from driver.group import Failed, Group
from driver.interleave import Effort, Measured, Sample
from driver.question import Case, Competitor
from driver.regime import round_trip_ns

IN_THE_RANKS, WHOLE_JOB = "in the ranks", "whole job"


def measure(
    case: Case, competitors: Sequence[Competitor], effort: Effort, say: Callable[[str], None]
) -> Measured:
    """Starts each competitor's ranks once a turn; the first turn, which fills the file cache, does not count."""
    found = Measured(case)
    present = []
    for competitor in competitors:
        if why := competitor.why_missing():
            found.absent[competitor.name] = why
        else:
            present.append(competitor)
            found.iterations[competitor.name] = 1
    before = round_trip_ns()
    for turn in range(effort.samples + 1):
        say(f"{case.name}: turn {turn} of {effort.samples}")
        for competitor in list(present):
            try:
                values = _one_job(competitor, case.ranks)
            except Failed as failure:
                present.remove(competitor)
                found.absent[competitor.name] = str(failure)
                found.failed.add(competitor.name)
                found.samples = [one for one in found.samples if one.competitor != competitor.name]
                continue
            after = round_trip_ns()
            if turn:
                found.samples += [
                    Sample(competitor.name, metric, seconds, turn, (before, after))
                    for metric, seconds in values.items()
                ]
            before = after
    return found


def _one_job(competitor: Competitor, ranks: int) -> dict[str, float]:
    start = time.monotonic()
    group = Group(competitor.team, ranks)
    spans = [rank.hello["span"] for rank in group.ranks]
    group.close()
    return {
        IN_THE_RANKS: (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e9,
        WHOLE_JOB: time.monotonic() - start,
    }
