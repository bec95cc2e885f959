"""How long dispatch and combine take with a core for each rank: few tokens (decode) and many (prefill).

The shape is DeepSeek-V3's. dispatch and combine alternate, so each finds the caches as the other leaves them.
"""

from __future__ import annotations

from competitors import moe
from driver.question import Case, Question

DEEPSEEK = {"hidden": 7168, "experts": 256, "topk": 8}
METRICS = ("dispatch", "combine")
DECODE_METRICS = (*METRICS, "dispatch to tokens")

QUESTION = Question(
    name="dispatch_combine",
    title="Dispatch and combine, a core for each rank",
    cases=[
        Case("decode, 2 ranks, 128 tokens each", 2, DECODE_METRICS, {"tokens": 128, **DEEPSEEK}),
        Case("prefill, 2 ranks, 4096 tokens each", 2, METRICS, {"tokens": 4096, **DEEPSEEK}, memory=1 << 30),
    ],
    smoke=[Case("small, 2 ranks", 2, DECODE_METRICS, {"tokens": 8, "hidden": 128, "experts": 16, "topk": 8})],
    all_competitors=moe.competitors,
)


def test_dispatch_and_combine(entry, report):
    report(entry)
