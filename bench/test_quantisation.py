"""What rows of a byte an element save: dispatch and combine with int8 and fp8_e4m3 beside the same with bfloat16.

Bytes are what one row takes on its way, elements and scales; tests/native/growth.cpp counts what calls really move. The
"floor" of these tables is no floor but XCCL with rows as they are: the ratio to it is what quantising gains, or costs.
The shape is DeepSeek-V3's.
"""

from __future__ import annotations

from collections.abc import Iterator

from driver.launch import Team
from driver.question import FLOOR, OURS, Case, Competitor, Question

DEEPSEEK = {"hidden": 7168, "experts": 256, "topk": 8}
SMALL = {"tokens": 8, "hidden": 200, "experts": 16, "topk": 8}
WHERE = {"private": "", "buffers": ", library's buffers"}
METRICS = tuple(f"{call}{where}" for where in WHERE.values() for call in ("dispatch", "combine"))


def row_bytes(quant: str, hidden: int) -> int:
    """Of one row on its way."""
    return {"none": 2 * hidden, "int8": hidden + 4, "fp8_e4m3": hidden + 4 * -(-hidden // 128)}[quant]


def competitors(case: Case) -> Iterator[Competitor]:
    """Each quantisation, and none."""
    plain = row_bytes("none", case.work["hidden"])
    for quant in ("none", "int8", "fp8_e4m3"):
        moved = row_bytes(quant, case.work["hidden"])
        for where, suffix in WHERE.items():
            yield Competitor(
                f"{'bfloat16' if quant == 'none' else quant}, {moved / plain:.3f} of the bytes, {where}",
                FLOOR if quant == "none" else OURS,
                Team("moe_quantised"),
                f"{quant} {where}",
                (f"dispatch{suffix}", f"combine{suffix}"),
            )


QUESTION = Question(
    name="quantisation",
    title="Dispatch and combine with rows of a byte an element",
    cases=[
        Case("decode, 2 ranks, 128 tokens each", 2, METRICS, {"tokens": 128, **DEEPSEEK}),
        Case("prefill, 2 ranks, 4096 tokens each", 2, METRICS, {"tokens": 4096, **DEEPSEEK}, memory=4 << 30),
    ],
    smoke=[Case("small, 2 ranks", 2, METRICS, SMALL)],
    all_competitors=lambda case: list(competitors(case)),
)


def test_quantisation(entry, report):
    report(entry)
