"""What a benchmark file asks: its cases, who competes in them, and one entry for each figure that comes out.

A file of bench/ makes one Question; conftest.py makes a test of each entry. Not here: how answers are found
(interleave.py, startup.py) and judged (compare.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from driver.launch import Team

OURS, PEER, FLOOR = "ours", "peer", "floor"


@dataclass(frozen=True)
class Competitor:
    """One line of a table: a team of processes and what it is told to do."""

    name: str
    role: str  #: OURS, PEER or FLOOR
    team: Team
    variant: str = ""  #: which of the things that the team's part can do
    metrics: tuple[str, ...] = ()  #: only these of the case's; none: all
    unless: str | None = None  #: why it cannot take part, where that has nothing to do with the team

    def why_missing(self) -> str | None:
        """Why it cannot take part here, or None."""
        return self.unless or self.team.why_missing()

    def tells(self, metric: str) -> bool:
        """Does it have a line in the table of this metric?"""
        return not self.metrics or metric in self.metrics


@dataclass(frozen=True)
class Case:
    """One setting in which all competitors are measured, in turn."""

    name: str
    ranks: int
    metrics: tuple[str, ...]
    work: dict[str, Any] = field(default_factory=dict, hash=False)  #: what the parts are told
    _: KW_ONLY
    memory: int = 0  #: bytes that a rank takes, about; a competitor for whom that much is not left is absent
    bytes: int = 0  #: that one iteration moves, where the table shall show a rate
    series: str = ""  #: cases of one series differ in their size only, and are drawn as lines
    size: int = 0  #: of a message or block; as `bytes` if not said

    @property
    def place(self) -> int:
        """In its series."""
        return self.size or self.bytes


@dataclass(frozen=True)
class Entry:
    """One figure: a metric of a competitor in a case."""

    case: Case
    metric: str
    competitor: Competitor

    @property
    def group(self) -> str:
        """What it is compared with: all entries of the same group."""
        return f"{self.case.name}: {self.metric}"

    def __str__(self) -> str:
        return f"{self.group}: {self.competitor.name}"


@dataclass(frozen=True)
class Question:
    """A benchmark file's question."""

    name: str  #: of the files with the answers
    title: str
    cases: Sequence[Case]
    smoke: Sequence[Case]  #: small cases that only show that everything works
    all_competitors: Callable[[Case], Sequence[Competitor]]
    each_starts: bool = False  #: every sample starts processes of its own (startup.py)

    def competitors(self, case: Case, with_peers: bool) -> list[Competitor]:
        """Who takes part in the case."""
        return [one for one in self.all_competitors(case) if with_peers or one.role != PEER]

    def entries(self, smoke: bool) -> Iterator[Entry]:
        """All figures, in the order of the tables."""
        for case in self.smoke if smoke else self.cases:
            for metric in case.metrics:
                for competitor in self.competitors(case, with_peers=not smoke):
                    if competitor.tells(metric):
                        yield Entry(case, metric, competitor)
