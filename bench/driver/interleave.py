"""Samples in turn: A B C A B C ... in one run, so that all competitors meet the same disturbances.

Only one group runs at a time, the others are stopped. Before each sample, and after the last, the distance of the
cores is looked at. Every sample comes after an unmeasured warm-up, and its result is checked after the clock has
stopped. Used by conftest.py; groups are started here and kept for further cases of as many ranks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from driver.group import Failed, Group
from driver.launch import Team
from driver.question import Case, Competitor
from driver.regime import regime_between, round_trip_ns
from xccl import _core

MOST_ITERATIONS = 200_000
MOST_LOOKS = 5  # of the length of a sample, until it is one
SPARE = 1 << 30  # bytes of memory that are left to everything else

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    samples: int  #: of each competitor
    seconds: float  #: that one sample is meant to take


@dataclass(frozen=True)
class Sample:
    """One figure of one competitor, with what the cores were like beside it."""

    competitor: str
    metric: str
    seconds: float  #: for one iteration
    turn: int
    round_trips_ns: tuple[float, float]  #: before and after

    @property
    def regime(self) -> str:
        """In which it was taken."""
        return regime_between(*self.round_trips_ns)


@dataclass
class Measured:
    """What came out of a case."""

    case: Case
    samples: list[Sample] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  #: competitor: why it has no samples
    failed: set[str] = field(default_factory=set)  #: those of them that took part and went wrong
    iterations: dict[str, int] = field(default_factory=dict)  #: in one sample


class Stage:
    """The groups that are alive: one for each team, all of the same number of ranks."""

    def __init__(self) -> None:
        self._groups: dict[Team, Group] = {}
        self._ranks = 0

    def group(self, team: Team, ranks: int) -> Group:
        """That team's group, standing still; started if it is not there. Raises Failed."""
        if ranks != self._ranks:
            self.clear()
            self._ranks = ranks
        if team not in self._groups:
            self._groups[team] = Group(team, ranks)
            self._groups[team].stop()
        return self._groups[team]

    def drop(self, team: Team) -> None:
        """Kills a group that went wrong."""
        if team in self._groups:
            self._groups.pop(team).kill()

    def clear(self) -> None:
        """Ends all groups."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()


def measure(
    case: Case,
    competitors: Sequence[Competitor],
    stage: Stage,
    effort: Effort,
    say: Callable[[str], None],
) -> Measured:
    """Measures a case. What goes wrong with a competitor is noted, and does not keep the others from going on."""
    return _Run(case, competitors, stage, effort, say).all_turns()


class _Run:
    def __init__(
        self,
        case: Case,
        competitors: Sequence[Competitor],
        stage: Stage,
        effort: Effort,
        say: Callable[[str], None],
    ) -> None:
        self.case = case
        self.stage = stage
        self.effort = effort
        self.say = say
        self.found = Measured(case)
        self.ready: set[Team] = set()  # teams that have taken the case
        self.present: list[Competitor] = []
        for competitor in competitors:
            self._admit(competitor)

    def _admit(self, competitor: Competitor) -> None:
        if why := competitor.why_missing() or self._why_no_room(competitor):
            self.found.absent[competitor.name] = why
            return
        self.say(f"{self.case.name}: {competitor.name} gets ready")
        try:
            self.found.iterations[competitor.name] = self._calibrated(competitor)
        except Failed as failure:
            self._exclude(competitor, str(failure))
        else:
            self.present.append(competitor)

    def _why_no_room(self, competitor: Competitor) -> str | None:
        """All groups of a case are alive together; the kernel would kill one of them, and tell nobody why."""
        needed = self.case.memory * self.case.ranks
        left = _core.machine()["memory_headroom"] - SPARE
        if competitor.team in self.ready or not needed or left >= needed:
            return None
        return f"needs about {needed / 2**30:.1f} GiB of memory, {left / 2**30:.1f} GiB are left beside the others"

    def _exclude(self, competitor: Competitor, why: str) -> None:
        self.found.absent[competitor.name] = why
        self.found.failed.add(competitor.name)
        self.found.samples = [one for one in self.found.samples if one.competitor != competitor.name]
        self.stage.drop(competitor.team)
        self.ready.discard(competitor.team)

    def _calibrated(self, competitor: Competitor) -> int:
        """How many iterations take about as long as a sample is meant to take.

        Memory that is used for the first time costs page faults: a number found then would make every sample of that
        competitor shorter than the others', and the more of it warm-up. So the last look is one that took long enough.
        """
        iterations = 1
        group = self._going_on(competitor.team)
        for share in (0.05, 0.3, *[1.0] * MOST_LOOKS):
            taken = self._busy_seconds(self._run(group, competitor, iterations, turn=0))
            wanted = self.effort.seconds * share / max(taken / iterations, 1e-9)
            found = max(1, min(MOST_ITERATIONS, int(wanted)))
            enough = share == 1.0 and found <= 1.5 * iterations
            iterations = found
            if enough:
                break
        group.stop()
        return iterations

    def _going_on(self, team: Team) -> Group:
        group = self.stage.group(team, self.case.ranks)
        group.go_on()
        if team not in self.ready:
            group.ask(do="case", case=self.case.work)
            self.ready.add(team)
        return group

    def all_turns(self) -> Measured:
        """Takes the samples."""
        before = round_trip_ns()
        for turn in range(1, self.effort.samples + 1):
            self.say(f"{self.case.name}: turn {turn} of {self.effort.samples}")
            for competitor in list(self.present):
                try:
                    values = self._sample(competitor, turn)
                except Failed as failure:
                    self.present.remove(competitor)
                    self._exclude(competitor, str(failure))
                    continue
                after = round_trip_ns()
                self.found.samples += [
                    Sample(competitor.name, metric, value, turn, (before, after))
                    for metric, value in values.items()
                    if competitor.tells(metric)
                ]
                before = after
        return self.found

    def _sample(self, competitor: Competitor, turn: int) -> dict[str, float]:
        iterations = self.found.iterations[competitor.name]
        group = self._going_on(competitor.team)
        self._run(group, competitor, max(1, iterations // 10), turn)
        answers = self._run(group, competitor, iterations, turn)
        for rank, told in enumerate(group.ask(do="check")):
            if told["wrong"]:
                raise Failed(f"wrong result on rank {rank}: {told['wrong']}")
        group.stop()
        return {metric: _seconds(answers, metric) for metric in _metrics(answers)}

    def _run(self, group: Group, competitor: Competitor, iterations: int, turn: int) -> Answers:
        # All competitors get the same seeds in a turn, so they get the same routing.
        seed = turn * MOST_ITERATIONS
        return group.ask(do="run", variant=competitor.variant, iterations=iterations, seed=seed)

    def _busy_seconds(self, answers: Answers) -> float:
        return sum((end - start) / 1e9 for spans in answers[0]["spans"].values() for start, end, _ in spans)


def _metrics(answers: Answers) -> list[str]:
    return list(answers[0]["spans"])


def _seconds(answers: Answers, metric: str) -> float:
    """The median of the spans: each from the first rank's start to the last rank's end, for one time that it did."""
    of_ranks = [answer["spans"][metric] for answer in answers if answer["spans"].get(metric)]
    seconds = [
        (max(end for _, end, _ in spans) - min(start for start, _, _ in spans)) / 1e9 / spans[0][2]
        for spans in zip(*of_ranks, strict=True)
    ]
    return float(statistics.median(seconds))
