"""What the run has measured: a table for the terminal and a picture of how busy each expert was.

Called by demo.py after the ranks have ended. Not here: whether the results are right (checks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clock import PHASES
from errors import INSTALL_HINT, DemoError
from job import RankStats
from quantised import row_bytes


@dataclass(frozen=True)
class Summary:
    """The figures of one generating run over all ranks."""

    stats: list[RankStats]
    layers: int
    experts: int
    hidden: int
    quant: str | None = None

    @property
    def seconds(self) -> float:
        return max(rank.seconds for rank in self.stats)

    @property
    def new_tokens(self) -> int:
        return sum(rank.new_tokens for rank in self.stats)

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds

    @property
    def moved_bytes(self) -> int:
        """Row bytes between ranks: to the experts and back."""
        return sum(rank.bytes_moved for rank in self.stats)

    @property
    def load(self) -> np.ndarray:
        """Rows by layer and expert, (layers, experts)."""
        load = np.zeros((self.layers, self.experts), np.int64)
        for rank in self.stats:
            for part in rank.loads:
                np.add.at(load, (slice(None), part.experts), np.array(part.rows, np.int64))
        return load

    @property
    def hottest(self) -> str:
        """The expert with the most rows in one layer."""
        load = self.load
        layer, expert = np.unravel_index(load.argmax(), load.shape)
        owner = next(rank.rank for rank in self.stats if expert in rank.loads[0].experts)
        times = load[layer, expert] / load[layer].mean()
        return (
            f"layer {layer}, expert {expert} on rank {owner}: {load[layer, expert]} rows, "
            f"{times:.2f} times the layer's mean"
        )


def table(summary: Summary) -> str:
    """Tokens, time and traffic by rank. Waiting for slower ranks counts as dispatch, combine or agree."""
    head = ["rank", "new", "steps", "idle", *PHASES, "MB moved", "own MB"]
    rows = [_row(rank) for rank in summary.stats]
    rows.append(_total(summary))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"tokens/s       {summary.tokens_per_second:.1f} new ({summary.new_tokens} in {summary.seconds:.1f} s)",
            f"bytes moved    {_moved(summary)}",
            f"hottest expert {summary.hottest}",
        ]
    )


def _moved(summary: Summary) -> str:
    moved = f"{summary.moved_bytes / 1e6:.1f} MB between ranks, dispatch and combine together"
    if summary.quant is None:
        return moved
    part = row_bytes(summary.hidden, summary.quant) / row_bytes(summary.hidden, None)
    return (
        f"{moved}, as {summary.quant}: {part:.3f} of the {summary.moved_bytes / part / 1e6:.1f} MB of float32"
    )


def _row(rank: RankStats) -> list[str]:
    return [
        str(rank.rank),
        str(rank.new_tokens),
        str(rank.steps),
        str(rank.idle_steps),
        *(f"{rank.phases[phase] / rank.seconds:.1%}" for phase in PHASES),
        f"{rank.bytes_moved / 1e6:.1f}",
        f"{rank.own_memory / 1e6:.0f}",
    ]


def _total(summary: Summary) -> list[str]:
    seconds = sum(rank.seconds for rank in summary.stats)
    return [
        "all",
        str(summary.new_tokens),
        str(max(rank.steps for rank in summary.stats)),
        str(sum(rank.idle_steps for rank in summary.stats)),
        *(f"{sum(rank.phases[phase] for rank in summary.stats) / seconds:.1%}" for phase in PHASES),
        f"{summary.moved_bytes / 1e6:.1f}",
        f"{sum(rank.own_memory for rank in summary.stats) / 1e6:.0f}",
    ]


def save_picture(summary: Summary, path: Path) -> None:
    """Heat map of rows per expert (across) and layer (down), relative to an even spread."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DemoError(f"the Python package 'matplotlib' is missing; {INSTALL_HINT}") from error
    load = summary.load
    relative = load / load.mean(axis=1, keepdims=True)
    # Without pyplot: no global state, no window system.
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(relative, aspect="auto", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="rows, relative to the layer's mean")
    for rank in summary.stats[:-1]:
        axes.axvline(max(rank.loads[0].experts, default=-1) + 0.5, color="white", linewidth=1)
    axes.set(xlabel=f"expert (white lines: {len(summary.stats)} ranks)", ylabel="layer", title="Expert load")
    figure.savefig(path, dpi=110)
