"""Which way pays between attention and expert ranks: what each rank writes and moves, direct or by trampoline.

Records are exact: `DisaggregatedExperts.counters()` counts the same numbers, and a test holds them together. Bytes and
times are those of full micro-batches spread evenly. Not here: doing any of it (direct.py, trampoline.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from xccl.errors import InvalidArgument

# Of a commodity host, measured with `make bench`; only their ratio decides. A record is a cache line written and one
# read; what is moved is read from another core's cache or from memory, and written.
RECORD_US = 0.3
BYTES_PER_US = 10_000.0
HOP_US = 2.0

ROUTINGS = ("direct", "trampoline")


@dataclass(frozen=True)
class Shape:
    """A micro-batch of one domain. `topk`: experts of a token, shared ones among them."""

    attention: int
    experts: int
    tokens: int
    hidden: int
    topk: int
    element_bytes: int = 2


@dataclass(frozen=True)
class Load:
    """Of one rank, for one micro-batch there and back."""

    records: int  #: that it writes
    fan_out: int  #: different ranks that it writes to
    bytes: int  #: of rows that it copies, whoever they are from

    @property
    def microseconds(self) -> float:
        return self.records * RECORD_US + self.bytes / BYTES_PER_US


@dataclass(frozen=True)
class Cost:
    """Both routings and the one that is used. `print` explains the choice."""

    shape: Shape
    routing: str
    asked: bool  #: for that routing, rather than for the cheaper one

    def attention(self, routing: str) -> Load:
        """Of an attention rank."""
        s = self.shape
        row = s.hidden * s.element_bytes
        if (
            routing == "direct"
        ):  # dispatch and combine, each a record to every expert rank; it sums topk rows a token
            return Load(2 * s.experts, s.experts, s.tokens * row * (1 + s.topk))
        return Load(1, 1, 2 * s.tokens * row)

    def expert(self, routing: str, rank: int = 0) -> Load:
        """Of the expert rank that is the `rank`-th of them."""
        s = self.shape
        row = s.hidden * s.element_bytes
        rows = s.attention * s.tokens * s.topk // s.experts  # that its experts work on
        if routing == "direct":
            return Load(2 * s.attention, s.attention, rows * row)
        clients = len(range(rank, s.attention, s.experts))
        # It takes its clients' tokens in, works on its share of all rows, and sums those of its clients' tokens.
        moved = rows + clients * s.tokens * (1 + s.topk)
        return Load(2 * (s.experts - 1) + clients, s.experts - 1 + clients, moved * row)

    def microseconds(self, routing: str) -> float:
        """Of a micro-batch there and back, without the experts' own work: its slowest ranks, one after the other."""
        hops = 2 if routing == "direct" else 4
        slowest = self.attention(routing).microseconds + self.expert(routing).microseconds
        return slowest + hops * HOP_US

    def __str__(self) -> str:
        s = self.shape
        lines = [
            f"{s.attention} attention and {s.experts} expert ranks, {s.tokens} tokens each of {s.hidden} elements, "
            f"top-{s.topk}; for one micro-batch, there and back:",
            f"  {'':10}  {'attention rank':^31}  {'expert rank':^31}",
            f"  {'':10}" + 2 * f"  {'records':>9} {'to ranks':>9} {'MiB':>11}" + f"  {'us':>9}",
        ]
        for routing in ROUTINGS:
            numbers = "  ".join(
                f"{load.records:9} {load.fan_out:9} {load.bytes / 2**20:11.3f}"
                for load in (self.attention(routing), self.expert(routing))
            )
            lines.append(f"  {routing:10}  {numbers}  {self.microseconds(routing):9.1f}")
        why = "as was asked for" if self.asked else "the cheaper one by this model"
        return "\n".join([*lines, f"  {self.routing}: {why}"])


def choose(shape: Shape, routing: str) -> Cost:
    """The routing that is asked for, or with "auto" the cheaper one."""
    if routing in ROUTINGS:
        return Cost(shape, routing, True)
    if routing != "auto":
        raise InvalidArgument(f'routing={routing!r}: expected "auto", "direct" or "trampoline"')
    cost = Cost(shape, "direct", False)
    return Cost(shape, min(ROUTINGS, key=cost.microseconds), False)
