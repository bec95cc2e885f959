"""The answers to all questions of a run on one page: where XCCL stands, beside the best peer and the floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from driver.compare import Row, Table
from driver.question import OURS, Question
from driver.write import about, duration, times


def as_markdown(answers: Sequence[tuple[Question, Sequence[Table]]], machine: dict[str, Any]) -> str:
    """A line for each way in which XCCL took part in each case."""
    lines = ["# Where XCCL stands", "", about(machine), ""]
    for question, found in answers:
        lines += [f"## {question.title}", "", HEAD, RULE]
        lines += [line for table in found for line in _lines(table)]
        lines += ["", *_means(question, found)]
    return "\n".join(lines)


HEAD = "| case | XCCL | median | best peer | of that | floor | of that | samples, cores |"
RULE = "|---|---|---|---|---|---|---|---|"


def _lines(table: Table) -> list[str]:
    peer, floor = table.best_peer, table.floor
    return [
        f"| {table.case}: {table.metric} | {_way(row)} | {duration(row.median)} | {_of(peer)} | "
        f"{times(row.to_best_peer)} | {_of(floor)} | {times(row.to_floor)} | {row.samples} {table.regime} |"
        if row.median
        else f"| {table.case}: {table.metric} | {_way(row)} | absent | {_of(peer)} | | {_of(floor)} | | |"
        for row in table.rows
        if row.competitor.role == OURS
    ]


def _way(row: Row) -> str:
    return row.competitor.name.removeprefix("XCCL").removeprefix(", ") or "-"


def _of(row: Row | None) -> str:
    return f"{row.competitor.name}: {duration(row.median)}" if row and row.median else "none"


def _means(question: Question, found: Sequence[Table]) -> list[str]:
    """Geometric means over the cases of a series, of the ratios to the best peer."""
    series = {case.name: case.series for case in [*question.cases, *question.smoke] if case.series}
    ratios: dict[tuple[str, str], list[float]] = {}
    for table in found:
        for row in table.rows:
            if row.competitor.role == OURS and row.to_best_peer and table.case in series:
                ratios.setdefault((series[table.case], _way(row)), []).append(row.to_best_peer)
    return [
        f"* {name}, {way}: geometric mean over {len(values)} cases {times(_mean(values))} of the best peer, at most "
        f"{times(max(values))}"
        for (name, way), values in ratios.items()
        if len(values) > 1
    ] + [""]


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
