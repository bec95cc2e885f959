"""How long an all-to-all takes, by ranks and size of a block: with a core for each rank, and with more ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from competitors import all_to_all
from driver.question import Case, Question
from driver.sizes import KIB, MIB, written


def cases(ranks: Sequence[int], sizes: Sequence[int]) -> Iterator[Case]:
    for count in ranks:
        for by in (all_to_all.FROM_C, all_to_all.FROM_PYTHON):
            for size in sizes:
                name, work = f"{count} ranks, {written(size)} a block, {by}", {"bytes": size, "by": by}
                moved = size * count * (count - 1)
                yield Case(
                    name, count, ("all_to_all",), work, bytes=moved, series=f"{count} ranks, {by}", size=size
                )


QUESTION = Question(
    name="all_to_all",
    title="All-to-all",
    cases=list(cases((2, 4, 8), (KIB, 64 * KIB, MIB))),
    smoke=list(cases((3,), (KIB,))),
    all_competitors=all_to_all.competitors,
)


def test_all_to_all(entry, report):
    report(entry)
