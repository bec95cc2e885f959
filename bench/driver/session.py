"""What a run of pytest has measured so far: each case once, and at the end the files with the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from driver import machine, plot, startup, summary, write
from driver.compare import Table, tables
from driver.interleave import Effort, Measured, Stage, measure
from driver.leftovers import Leftovers
from driver.question import Case, Question


@dataclass
class _Answer:
    question: Question
    cases: dict[str, Measured] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


class Session:
    """Measures on demand."""

    def __init__(self, effort: Effort, with_peers: bool, results: Path, say: Callable[[str], None]) -> None:
        self.machine = machine.facts()
        self._effort = effort
        self._with_peers = with_peers
        self._results = results
        self._say = say
        self._leftovers = Leftovers()
        self._stage = Stage()
        self._answers: dict[str, _Answer] = {}
        self._current = ""

    def measured(self, question: Question, case: Case) -> tuple[Measured, list[Table]]:
        """The case's samples and tables; takes the samples when first asked."""
        if question.name != self._current:
            self._stage.clear()
            self._current = question.name
        answer = self._answers.setdefault(question.name, _Answer(question))
        if case.name not in answer.cases:
            competitors = question.competitors(case, self._with_peers)
            if question.each_starts:
                found = startup.measure(case, competitors, self._effort, self._say)
            else:
                found = measure(case, competitors, self._stage, self._effort, self._say)
            answer.cases[case.name] = found
            answer.tables += tables(found, competitors)
        of_case = [table for table in answer.tables if table.case == case.name]
        return answer.cases[case.name], of_case

    def finish(self) -> list[Path]:
        """Ends what still runs and writes the files. Returns the tables' paths."""
        self._stage.clear()
        self._leftovers.remove()
        written = []
        for name, answer in self._answers.items():
            cases = list(answer.cases.values())
            write.write(self._results, answer.question, cases, answer.tables, self.machine, self._effort)
            plot.draw(self._results / f"{name}.png", answer.question, answer.tables, self._say)
            written.append(self._results / f"{name}.md")
        page = summary.as_markdown(
            [(one.question, one.tables) for one in self._answers.values()], self.machine
        )
        written.append(self._results / "summary.md")
        written[-1].write_text(page)
        return written
