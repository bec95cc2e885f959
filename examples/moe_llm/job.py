"""What the main program and the ranks tell each other, as files in one folder: JSON and .npy, never code.

job.json          the work, written before the ranks start
rank<r>.events    one JSON line per new token, appended while the ranks run
rank<r>.stats     what a rank measured, written at the end of each pass
k<k>-<id>.npy     logits of a teacher-forced request, (tokens, vocabulary)

Called by demo.py, launcher.py and rank.py. Not here: starting processes (launcher.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GENERATE = "generate"
TEACHER_FORCED = "teacher_forced"


@dataclass(frozen=True)
class Request:
    """A sequence to work on: generate up to max_new tokens behind `tokens`, or only read them."""

    id: int
    tokens: list[int]
    max_new: int = 0


@dataclass(frozen=True)
class Form:
    """Where attention and experts are, and whether experts move: see place.py. By default every rank has both."""

    attention: int | None = None  # so many ranks, the first ones, have attention; the others have the experts
    routing: str = "auto"  # between them
    rebalance: bool = False

    def token_ranks(self, size: int) -> int:
        """How many of `size` ranks, the first ones, have tokens."""
        return size if self.attention is None else self.attention


COLOCATED = Form()


@dataclass(frozen=True)
class Job:
    """The work of one launch. With several topks, the whole work is done once for each."""

    mode: str
    prepared: str
    topks: list[int]
    max_tokens: int
    end_token: int
    requests: list[Request]
    broken_expert: tuple[int, int] | None = None  # (layer, expert) that returns zeros: see --break-expert
    quant: str | None = None  # how rows travel
    form: Form = COLOCATED

    def write(self, folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Job:
        fields = json.loads((folder / "job.json").read_text())
        fields["requests"] = [Request(**request) for request in fields["requests"]]
        fields["form"] = Form(**fields["form"])
        if fields["broken_expert"] is not None:  # JSON made a list of it, which would equal no tuple
            fields["broken_expert"] = tuple(fields["broken_expert"])
        return Job(**fields)


@dataclass(frozen=True)
class Event:
    """One generated token, the logit it won with, and whether it is the request's last."""

    request: int
    token: int
    logit: float
    last: bool


@dataclass(frozen=True)
class SlotLoad:
    """Rows that came to the experts of a rank, while these were in its slots."""

    experts: list[int]  # of each slot
    rows: list[list[int]]  # by layer and slot


@dataclass(frozen=True)
class Traffic:
    """What a rank counted between attention and experts, and what the cost model says that it should be."""

    records: int
    fan_out: int
    model_records: int
    model_fan_out: int
    routing: str


@dataclass(frozen=True)
class Moved:
    """Experts that changed ranks while the model was running. Steps are counted from 1."""

    experts: int
    bytes: int
    begun: int  # the step in which the first piece went
    ready: int | None  # the step in which they began to serve from their new ranks, if there was time for it
    before: list[list[int]]  # for each rank the experts in its slots
    after: list[list[int]]


@dataclass(frozen=True)
class RankStats:
    """What one rank did and how long each part took."""

    rank: int
    seconds: float
    phases: dict[str, float]
    steps: int
    idle_steps: int  # steps in which it had no token of its own
    read_tokens: int  # tokens that went through its attention
    new_tokens: int
    bytes_moved: int  # of rows, between it and other ranks
    own_memory: int  # bytes that no other process shares
    loads: list[SlotLoad]  # one; one more after experts have moved; none on a rank without experts
    traffic: Traffic | None = None  # of ranks that have either attention or experts
    moved: Moved | None = None


def events_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.events"


def logits_file(folder: Path, topk: int, request: int) -> Path:
    return folder / f"k{topk}-{request}.npy"


def write_stats(folder: Path, stats: RankStats) -> None:
    (folder / f"rank{stats.rank}.stats").write_text(json.dumps(asdict(stats)))


def read_stats(folder: Path, size: int) -> list[RankStats]:
    return [_rank_stats(json.loads((folder / f"rank{rank}.stats").read_text())) for rank in range(size)]


def _rank_stats(fields: dict[str, Any]) -> RankStats:
    fields["loads"] = [SlotLoad(**load) for load in fields["loads"]]
    fields["traffic"] = fields["traffic"] and Traffic(**fields["traffic"])
    fields["moved"] = fields["moved"] and Moved(**fields["moved"])
    return RankStats(**fields)
