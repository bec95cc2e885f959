"""How long dispatch and combine take with more ranks than cores: 4 and 8 ranks on the cores there are."""

from __future__ import annotations

from competitors import moe
from driver.question import Case, Question

DEEPSEEK = {"tokens": 128, "hidden": 7168, "experts": 256, "topk": 8}
METRICS = ("dispatch", "combine")

QUESTION = Question(
    name="oversubscription",
    title="Dispatch and combine, more ranks than cores",
    cases=[Case(f"decode, {ranks} ranks, 128 tokens each", ranks, METRICS, DEEPSEEK) for ranks in (4, 8)],
    smoke=[Case("small, 4 ranks", 4, METRICS, {"tokens": 8, "hidden": 128, "experts": 16, "topk": 8})],
    all_competitors=moe.competitors,
)


def test_dispatch_and_combine(entry, report):
    report(entry)
