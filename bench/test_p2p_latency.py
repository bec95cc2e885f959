"""How long a message takes one way, by size: half of a round trip between two ranks.

From C, from Python, and from Python with an array that the receiver only borrows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from competitors import messages
from driver.question import Case, Question
from driver.sizes import MIB, SIZES, written


def cases(sizes: Sequence[int], room: int) -> Iterator[Case]:
    for by in (messages.FROM_C, messages.FROM_PYTHON, messages.BORROWED):
        borrowed = by == messages.BORROWED
        for size in sizes[::3] if borrowed else sizes:
            work = {"what": "borrowed" if borrowed else "latency", "bytes": size, "room": room, "by": by}
            rate = 0 if borrowed else size
            yield Case(
                f"{written(size)}, {by}", 2, ("half round trip",), work, bytes=rate, series=by, size=size
            )


QUESTION = Question(
    name="p2p_latency",
    title="A message, one way",
    cases=list(cases(SIZES, 64 * MIB)),
    smoke=list(cases((8, 4096), MIB)),
    all_competitors=messages.competitors,
)


def test_latency(entry, report):
    report(entry)
