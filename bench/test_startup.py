"""How long a job of 4 ranks takes until its first barrier has ended: importing, joining, one barrier.

"in the ranks": from the first line of the first rank to the end of the last one's barrier, numpy's import included for
everybody, since XCCL needs it and users of mpi4py have it. "whole job": from starting the launcher to its end.
"""

from __future__ import annotations

from competitors import startup
from driver.question import Case, Question
from driver.startup import IN_THE_RANKS, WHOLE_JOB

METRICS = (IN_THE_RANKS, WHOLE_JOB)

QUESTION = Question(
    name="startup",
    title="Start-up: import, init and first barrier",
    cases=[Case("4 ranks", 4, METRICS)],
    smoke=[Case("2 ranks", 2, METRICS)],
    all_competitors=startup.competitors,
    each_starts=True,
)


def test_startup(entry, report):
    report(entry)
