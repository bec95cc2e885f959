"""`python -m xccl demo`: one dispatch and combine between four processes, checked bit for bit against plain
numpy.

A toy that needs no model: expert e multiplies a row by a factor that all know. The example with a language
model is in the repository, examples/moe_llm.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

SUMMARY = "dispatch and combine between four processes, checking itself"
DESCRIPTION = (
    "Sends random tokens to experts in four processes and back, and checks the result against plain numpy."
)

RANKS = 4
EXPERTS = 8
TOP_K = 2
HIDDEN = 64
TOKENS = (6, 0, 9, 3)  # by rank: a rank with nothing to say takes part all the same


@dataclass(frozen=True)
class Problem:
    """The tokens of one rank, and to which experts each goes with which weight. -1 is no expert."""

    x: np.ndarray[Any, np.dtype[np.float32]]
    experts: np.ndarray[Any, np.dtype[np.int64]]
    weights: np.ndarray[Any, np.dtype[np.float32]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens and routing")


def execute(arguments: argparse.Namespace) -> int:
    """Runs the ranks, shows what went where, says whether the result is right."""
    import xccl

    print(f"{RANKS} ranks, {EXPERTS} experts, each token goes to {TOP_K} of them\n")
    results = xccl.spawn(play_one_rank, RANKS, args=(arguments.seed,))
    received = np.stack([counts for counts, _ in results], axis=1)
    print(picture(received))
    wrong = [
        rank for rank, (_, y) in enumerate(results) if not same_bits(y, truth(problem(arguments.seed, rank)))
    ]
    wrong_counts = not np.array_equal(received, expected_rows(arguments.seed))
    if wrong or wrong_counts:
        what = f"wrong results in ranks {wrong}" if wrong else "rows went to the wrong ranks"
        print(f"\nxccl demo: FAILED: {what} (seed {arguments.seed}); see also `python -m xccl doctor`")
        return 1
    print(f"\nxccl demo: OK: {int(received.sum())} rows there and back, the same bits as plain numpy")
    return 0


def play_one_rank(comm: Any, seed: int) -> tuple[Any, Any]:
    """What a rank does. Returns the rows it received, counted by source, and the combined tokens."""
    import xccl

    mine = problem(seed, comm.rank)
    ep = xccl.ExpertParallel(
        comm, num_experts=EXPERTS, hidden=HIDDEN, max_tokens=max(TOKENS), topk=TOP_K, dtype="float32"
    )
    with ep.dispatch(mine.x, mine.experts, mine.weights) as d:
        out = d.output_buffer()
        for i, expert in enumerate(ep.local_experts):
            out[d.rows_of(i)] = d.expert(i) * factor(expert)
        counts = np.bincount(np.asarray(d.src_rank), minlength=RANKS)
        y = np.array(ep.combine(out, d))
    ep.close()
    return counts, y


def factor(expert: int) -> float:
    """What expert number `expert` multiplies by."""
    return float(1 + expert / 8)  # a Python float: numpy then multiplies float32 rows in float32


def problem(seed: int, rank: int) -> Problem:
    """The tokens of a rank, the same wherever they are made."""
    random = np.random.default_rng((seed, rank))
    tokens = TOKENS[rank]
    experts = np.argsort(random.random((tokens, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int64)
    experts[random.random(experts.shape) < 0.1] = -1
    weights = random.random((tokens, TOP_K), dtype=np.float32)
    return Problem(random.standard_normal((tokens, HIDDEN), dtype=np.float32), experts, weights)


def truth(p: Problem) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What combine must return: float32 sums in the order of the top-k slots."""
    y = np.zeros_like(p.x)
    for token, chosen in enumerate(p.experts):
        parts = [p.weights[token, k] * (p.x[token] * factor(e)) for k, e in enumerate(chosen) if e >= 0]
        if parts:
            y[token] = parts[0]
        for part in parts[1:]:
            y[token] = y[token] + part
    return y


def expected_rows(seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[source, destination]: how many rows go there, experts being spread evenly and in order."""
    rows = np.zeros((RANKS, RANKS), np.int64)
    for source in range(RANKS):
        chosen = problem(seed, source).experts
        rows[source] = np.bincount(chosen[chosen >= 0] // (EXPERTS // RANKS), minlength=RANKS)
    return rows


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Equal shape and equal bytes: -0.0 is not 0.0 here."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def picture(rows: np.ndarray[Any, Any]) -> str:
    """Who sent how many rows to whom, as text."""
    width = max(11, int(rows.max()) + 4)
    head = " " * 16 + "".join(f"to rank {rank}".ljust(width) for rank in range(len(rows)))
    lines = [head.rstrip()]
    for source, counts in enumerate(rows):
        cells = "".join(f"{'#' * int(n)} {int(n)}".strip().ljust(width) for n in counts)
        lines.append(f"from rank {source}".ljust(16) + cells.rstrip())
    return "\n".join(lines)
