"""What the run has measured: a table for the terminal and a picture of how busy each expert was.

Called by demo.py after the ranks have ended. Not here: whether the results are right (checks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from balance import Balance, above_mean, balance_of, describe_moved, rows_by_expert
from clock import PHASES
from errors import INSTALL_HINT, DemoError
from job import COLOCATED, Form, RankStats
from quantised import row_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Summary:
    """The figures of one generating run over all ranks."""

    stats: list[RankStats]
    hidden: int
    quant: str | None = None
    form: Form = COLOCATED

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
        return rows_by_expert(self.stats, 0) + rows_by_expert(self.stats, 1)

    @property
    def hottest(self) -> str:
        """The expert with the most rows in one layer."""
        load = self.load
        layer, expert = np.unravel_index(load.argmax(), load.shape)
        owner = next(rank.rank for rank in self.stats if rank.loads and expert in rank.loads[0].experts)
        times = load[layer, expert] / load[layer].mean()
        return (
            f"layer {layer}, expert {expert} on rank {owner}: {load[layer, expert]} rows, "
            f"{times:.2f} times the layer's mean"
        )


def table(summary: Summary) -> str:
    """Tokens, time and traffic by rank. Waiting for slower ranks counts as dispatch, combine or agree."""
    phases = [phase for phase in PHASES if any(rank.phases[phase] for rank in summary.stats)]
    head = ["rank", "new", "steps", "idle", *phases, "MB moved", "own MB"]
    rows = [_row(rank, phases) for rank in summary.stats]
    rows.append(_total(summary, phases))
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
            *_traffic(summary),
            *_rebalancing(summary),
        ]
    )


def _traffic(summary: Summary) -> list[str]:
    """Records between attention and experts, of the busiest rank of each kind."""
    attention = summary.form.attention
    if attention is None:
        return []
    lines = [f"routing        {summary.stats[0].traffic.routing} (asked for: {summary.form.routing})"]
    for kind, ranks in (("attention", summary.stats[:attention]), ("experts", summary.stats[attention:])):
        busiest = max((rank.traffic for rank in ranks), key=lambda traffic: traffic.records)
        lines.append(
            f"{kind:14} on {len(ranks)}: at most {busiest.records} records ({busiest.model_records} by the cost "
            f"model) to {busiest.fan_out} other rank{'s' * (busiest.fan_out > 1)}"
        )
    return lines


def _rebalancing(summary: Summary) -> list[str]:
    """How much hotter than the mean the hottest rank is, which all others wait for."""
    if not summary.form.rebalance:
        return []
    lines = [f"experts moved  {describe_moved(summary.stats)}"]
    balance = balance_of(summary.stats)
    if balance is not None:
        lines.append(
            f"hottest rank   {above_mean(balance.before):.1%} above the mean before, {above_mean(balance.after):.1%} "
            f"after; unmoved, the rows after would make {above_mean(balance.unmoved):.1%}"
        )
    return lines


def _moved(summary: Summary) -> str:
    moved = f"{summary.moved_bytes / 1e6:.1f} MB between ranks, dispatch and combine together"
    if summary.quant is None:
        return moved
    if summary.form.attention is not None:
        return f"{moved}, rows of experts as {summary.quant}"  # a trampoline's messages and sums are float32
    part = row_bytes(summary.hidden, summary.quant) / row_bytes(summary.hidden, None)
    return (
        f"{moved}, as {summary.quant}: {part:.3f} of the {summary.moved_bytes / part / 1e6:.1f} MB of float32"
    )


def _row(rank: RankStats, phases: list[str]) -> list[str]:
    return [
        str(rank.rank),
        str(rank.new_tokens),
        str(rank.steps),
        str(rank.idle_steps),
        *(f"{rank.phases[phase] / rank.seconds:.1%}" for phase in phases),
        f"{rank.bytes_moved / 1e6:.1f}",
        f"{rank.own_memory / 1e6:.0f}",
    ]


def _total(summary: Summary, phases: list[str]) -> list[str]:
    seconds = sum(rank.seconds for rank in summary.stats)
    return [
        "all",
        str(summary.new_tokens),
        str(max(rank.steps for rank in summary.stats)),
        str(sum(rank.idle_steps for rank in summary.stats)),
        *(f"{sum(rank.phases[phase] for rank in summary.stats) / seconds:.1%}" for phase in phases),
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
    balance = balance_of(summary.stats)
    # Without pyplot: no global state, no window system.
    figure = Figure(figsize=(9, 7 if balance is None else 12), layout="constrained")
    FigureCanvasAgg(figure)
    if balance is None:
        _draw_experts(figure, figure.add_subplot(), summary)
    else:
        axes = figure.subplot_mosaic([["experts", "experts"], ["unmoved", "after"]])
        _draw_experts(figure, axes["experts"], summary)
        _draw_ranks(figure, [axes["unmoved"], axes["after"]], balance)
    figure.savefig(path, dpi=110)


def _draw_experts(figure: Figure, axes: Axes, summary: Summary) -> None:
    load = summary.load
    image = axes.imshow(load / load.mean(axis=1, keepdims=True), aspect="auto", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="rows, relative to the layer's mean")
    hosts = [rank for rank in summary.stats if rank.loads]
    for rank in hosts[:-1]:
        axes.axvline(max(rank.loads[0].experts, default=-1) + 0.5, color="white", linewidth=1)
    axes.set(xlabel=f"expert (white lines: {len(hosts)} ranks)", ylabel="layer", title="Expert load")


def _draw_ranks(figure: Figure, pair: list[Axes], balance: Balance) -> None:
    """The same rows without and with the move, side by side."""
    without, moved = (rows / rows.mean(axis=1, keepdims=True) for rows in (balance.unmoved, balance.after))
    span = max(abs(part - 1).max() for part in (without, moved))
    for axes, part, rows, what in (
        (pair[0], without, balance.unmoved, "had no expert moved"),
        (pair[1], moved, balance.after, "after experts moved"),
    ):
        image = axes.imshow(part, aspect="auto", cmap="coolwarm", vmin=1 - span, vmax=1 + span)
        axes.set(xlabel="rank", ylabel="layer", xticks=range(rows.shape[1]))
        axes.set_title(f"Rank load, {what}: hottest {above_mean(rows):.1%} above the mean", fontsize="medium")
    figure.colorbar(image, ax=pair, label="rows, relative to the layer's mean")
