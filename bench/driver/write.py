"""The files with the answers: NAME.json with every sample, NAME.md with the tables, NAME-*.png (plot.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driver.compare import Row, Table
from driver.interleave import Effort, Measured
from driver.question import Question

QUIET = 0.7  # of the kernel's average load over the last minute


def as_json(
    question: Question,
    measured: Sequence[Measured],
    found: Sequence[Table],
    machine: dict[str, Any],
    effort: Effort,
) -> str:
    """Everything: the machine, the medians, every sample with the round trips beside it."""
    content = {
        "question": question.title,
        "machine": machine,
        "effort": {"samples": effort.samples, "seconds": effort.seconds},
        "tables": [_table(table) for table in found],
        "cases": [
            {
                "case": one.case.name,
                "ranks": one.case.ranks,
                "work": one.case.work,
                "iterations": one.iterations,
                "absent": one.absent,
                "samples": [
                    [s.competitor, s.metric, s.turn, s.seconds, *(round(ns, 1) for ns in s.round_trips_ns)]
                    for s in one.samples
                ],
            }
            for one in measured
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "case": table.case,
        "metric": table.metric,
        "bytes": table.bytes,
        "regime": table.regime,
        "samples by regime": table.regimes,
        "rows": [_row(row) for row in table.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "competitor": row.competitor.name,
        "role": row.competitor.role,
        "median_s": row.median,
        "best_s": row.best,
        "samples": row.samples,
        "to best peer": row.to_best_peer,
        "to floor": row.to_floor,
        "absent": row.why_absent,
    }


def as_markdown(question: Question, found: Sequence[Table], machine: dict[str, Any]) -> str:
    """The tables for people."""
    lines = [f"# {question.title}", "", about(machine), ""]
    for table in found:
        lines += [f"## {table.case}: {table.metric}", "", *_lines(table), ""]
    return "\n".join(lines)


def about(machine: dict[str, Any]) -> str:
    """One paragraph on where and with what."""
    quiet = machine["load before"] < QUIET
    return (
        f"XCCL {machine['xccl']}, commit {machine['commit']}; {machine['cpu']}, {len(machine['cores used'])} of "
        f"{machine['cores']} cores used, {machine['kernel']}; {machine['date']}; load before: "
        f"{machine['load before']:.2f}{'' if quiet else ' (**the machine was not quiet: these figures mean little**)'}."
    )


def _lines(table: Table) -> list[str]:
    spread = ", ".join(
        f"{n} {regime}" for regime, n in sorted(table.regimes.items(), key=lambda item: -item[1])
    )
    lines = [f"Cores {table.regime}. Samples of all competitors: {spread or 'none'}.", ""]
    with_rate = " rate |" if table.bytes else ""
    lines += [
        f"| | median | fastest |{with_rate} samples | of the best peer | of the floor |",
        "|---|---|---|" + ("---|" if table.bytes else "") + "---|---|---|",
    ]
    return lines + [_line(row, table.bytes) for row in table.rows]


def _line(row: Row, moved: int) -> str:
    cells = [f"{row.competitor.name} ({row.competitor.role})"]
    if row.median is None:
        why = (row.why_absent or "").splitlines()[-1].replace("|", "/")
        return f"| {cells[0]} | absent: {why} |" + " |" * (5 if moved else 4)
    cells += [duration(row.median), duration(row.best or 0.0)]
    if moved:
        cells.append(f"{moved / row.median / 1e9:.2f} GB/s")
    cells += [str(row.samples), times(row.to_best_peer), times(row.to_floor)]
    return "| " + " | ".join(cells) + " |"


def duration(seconds: float) -> str:
    """With three figures."""
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return (
                f"{seconds / length:.3g} {unit}"
                if seconds < 1000 * length
                else f"{seconds / length:.0f} {unit}"
            )
    return f"{seconds * 1e9:.3g} ns"


def times(ratio: float | None) -> str:
    """A ratio, or a dash."""
    return "-" if ratio is None else f"{ratio:.2f} x"


def write(
    folder: Path,
    question: Question,
    measured: Sequence[Measured],
    found: Sequence[Table],
    machine: dict[str, Any],
    effort: Effort,
) -> None:
    """Writes JSON and tables into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{question.name}.json").write_text(as_json(question, measured, found, machine, effort))
    (folder / f"{question.name}.md").write_text(as_markdown(question, found, machine))
