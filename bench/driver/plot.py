"""Draws the tables: lines over the size where cases form a series, else a panel of bars for each table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from driver.compare import Table
from driver.question import FLOOR, OURS, PEER, Case, Question
from driver.sizes import written

COLOURS = {OURS: "tab:blue", PEER: "tab:gray", FLOOR: "tab:green"}
STYLES = {OURS: "o-", PEER: "x--", FLOOR: ".:"}
COLUMNS = 2


def draw(path: Path, question: Question, found: Sequence[Table], say: Callable[[str], None]) -> None:
    """Writes the picture; without matplotlib it says that there is none."""
    try:
        import matplotlib
    except ImportError:
        say(f"no plot {path.name}: matplotlib is not installed (`make bench` installs it)\n")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = _panels(question, [table for table in found if any(row.median for row in table.rows)])
    if not panels:
        return
    rows = -(-len(panels) // COLUMNS)
    tallest = max(len(table.rows) for tables in panels.values() for table in tables)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(15, rows * max(4.0, 0.3 * tallest)), squeeze=False)
    for axis, (title, tables) in zip(axes.flat, panels.items(), strict=False):
        if len(tables) > 1:
            _lines(axis, tables, {case.name: case for case in [*question.cases, *question.smoke]})
        else:
            _bars(axis, tables[0])
        axis.set_title(title, fontsize=9)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.suptitle(question.title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panels(question: Question, found: Sequence[Table]) -> dict[str, list[Table]]:
    """Tables by the title of their panel: those of a series together."""
    series = {case.name: case.series for case in [*question.cases, *question.smoke]}
    panels: dict[str, list[Table]] = {}
    for table in found:
        title = f"{series[table.case] or table.case}: {table.metric}"
        panels.setdefault(title, []).append(table)
    return panels


def _lines(axis: Any, tables: Sequence[Table], cases: dict[str, Case]) -> None:
    places = [cases[table.case].place for table in tables]
    curves: dict[str, tuple[str, list[tuple[int, float]]]] = {}
    for place, table in zip(places, tables, strict=True):
        for row in table.rows:
            if row.median:
                curve = curves.setdefault(row.competitor.name, (row.competitor.role, []))
                curve[1].append((place, row.median * 1e6))
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for name, (role, points) in curves.items():
        colour = None if role == PEER else COLOURS[role]  # peers get colours of their own
        axis.plot(*zip(*points, strict=True), STYLES[role], color=colour, label=name, linewidth=1.2)
    axis.set_xticks(places, [written(place) for place in places], fontsize=7)
    axis.minorticks_off()
    axis.set_ylabel("us")
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize=7)


def _bars(axis: Any, table: Table) -> None:
    rows = sorted((row for row in table.rows if row.median), key=lambda row: -(row.median or 0.0))
    values = [(row.median or 0.0) * 1e6 for row in rows]
    names = [row.competitor.name for row in rows]
    bars = axis.barh(names, values, color=[COLOURS[row.competitor.role] for row in rows])
    axis.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=7)
    axis.set_xscale("log")
    axis.set_xlabel(f"us (cores {table.regime})")
    axis.margins(x=0.15)
    axis.tick_params(axis="y", labelsize=7)
