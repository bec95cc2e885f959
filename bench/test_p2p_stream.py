"""How fast messages follow each other, by size: windows of 64 from one rank to the other, from C and from Python.

The figure is the time for one message; its inverse is the message rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from competitors import messages
from driver.question import Case, Question
from driver.sizes import MIB, SIZES, written

WINDOW = 64


def cases(sizes: Sequence[int], room: int) -> Iterator[Case]:
    for by in (messages.FROM_C, messages.FROM_PYTHON):
        for size in sizes:
            work = {"what": "stream", "bytes": size, "room": room, "window": WINDOW, "by": by}
            yield Case(f"{written(size)}, {by}", 2, ("message",), work, bytes=size, series=by)


QUESTION = Question(
    name="p2p_stream",
    title=f"A message in a stream, {WINDOW} at a time",
    cases=list(cases(SIZES, 64 * MIB)),
    smoke=list(cases((8, 4096), MIB)),
    all_competitors=messages.competitors,
)


def test_stream(entry, report):
    report(entry)
