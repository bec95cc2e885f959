"""From samples to a table: medians within one regime, and their ratios to the best peer and to the floor."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from driver.interleave import Measured
from driver.question import FLOOR, PEER, Competitor


@dataclass(frozen=True)
class Row:
    """One competitor in one metric of a case."""

    competitor: Competitor
    median: float | None = None  #: seconds
    best: float | None = None  #: the fastest sample
    samples: int = 0  #: that the median was taken of
    to_best_peer: float | None = None
    to_floor: float | None = None
    why_absent: str | None = None


@dataclass(frozen=True)
class Table:
    """All competitors in one metric of a case, in one regime."""

    case: str
    metric: str
    bytes: int
    regime: str
    regimes: dict[str, int]  #: samples in each
    rows: Sequence[Row]

    @property
    def best_peer(self) -> Row | None:
        """The fastest of the peers."""
        return fastest(self.rows, PEER)

    @property
    def floor(self) -> Row | None:
        """The fastest of the floors."""
        return fastest(self.rows, FLOOR)


def fastest(rows: Sequence[Row], role: str) -> Row | None:
    """Of that role, the row with the smallest median."""
    found = [row for row in rows if row.competitor.role == role and row.median is not None]
    return min(found, key=lambda row: row.median or 0.0, default=None)


def tables(measured: Measured, competitors: Sequence[Competitor]) -> list[Table]:
    """One table for each metric. The regime is that of most samples, the same for all metrics of the case."""
    regimes = Counter(sample.regime for sample in measured.samples)
    settled = Counter({regime: n for regime, n in regimes.items() if regime != "moved"})
    regime = settled.most_common(1)[0][0] if settled else "none"
    return [_table(measured, competitors, metric, regime, dict(regimes)) for metric in measured.case.metrics]


def _table(
    measured: Measured, competitors: Sequence[Competitor], metric: str, regime: str, regimes: dict[str, int]
) -> Table:
    rows = [_row(measured, one, metric, regime) for one in competitors if one.tells(metric)]
    peer, floor = fastest(rows, PEER), fastest(rows, FLOOR)
    compared = [
        Row(
            row.competitor,
            row.median,
            row.best,
            row.samples,
            _ratio(row, peer),
            _ratio(row, floor),
            row.why_absent,
        )
        for row in rows
    ]
    return Table(measured.case.name, metric, measured.case.bytes, regime, regimes, compared)


def _row(measured: Measured, competitor: Competitor, metric: str, regime: str) -> Row:
    values = [
        sample.seconds
        for sample in measured.samples
        if (sample.competitor, sample.metric, sample.regime) == (competitor.name, metric, regime)
    ]
    if values:
        return Row(competitor, statistics.median(values), min(values), len(values))
    return Row(competitor, why_absent=measured.absent.get(competitor.name, f"no sample in regime {regime!r}"))


def _ratio(row: Row, to: Row | None) -> float | None:
    return row.median / to.median if row.median and to and to.median else None
