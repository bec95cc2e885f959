"""What the ranks of test_scale.py do.

`rounds HIDDEN N`: the same tokens whatever the number of ranks; prints a hash of all sums.
`memory HIDDEN N`: 32 tokens on every rank; compares the memory taken with the planner's.
"""

from __future__ import annotations

import hashlib
import sys

import ml_dtypes
import numpy as np

import xccl

EXPERTS, TOPK, TOKENS = 64, 8, 32
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def tokens_of_round(number: int, tokens: int, hidden: int, experts: int = EXPERTS):
    """Rows, experts and weights; cheap to make, different in every round."""
    rng = np.random.default_rng(number)
    x = rng.integers(-128, 128, (tokens, hidden), dtype=np.int8).astype(np.float32).astype(BFLOAT16)
    idx = rng.integers(-1, experts, (tokens, TOPK), dtype=np.int64)
    return x, idx, rng.random((tokens, TOPK), dtype=np.float32)


def work(rows: np.ndarray, expert: int) -> np.ndarray:
    """What an expert does: exact in bfloat16, different for neighbours."""
    return rows * BFLOAT16.type([1, -2, 0.5, 4][expert % 4])


def truth(x: np.ndarray, idx: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sums, slot by slot in float32, rounded once."""
    factors = np.array([1, -2, 0.5, 4], np.float32)
    total, begun = np.zeros(x.shape, np.float32), np.zeros(len(x), bool)
    for k in range(TOPK):
        here = idx[:, k] >= 0
        row = x[here].astype(np.float32) * factors[idx[here, k] % 4][:, None]
        product = weights[here, k][:, None] * row
        total[here] = np.where(begun[here][:, None], total[here] + product, product)
        begun |= here
    return total.astype(BFLOAT16)


def rounds(comm: xccl.Communicator, hidden: int, count: int) -> str:
    """A hash over the sums of all ranks in all rounds: 32 tokens a rank at 8 ranks, as many in all at fewer."""
    everybody = 8 * TOKENS
    ep = xccl.ExpertParallel(comm, EXPERTS, hidden, everybody, TOPK)
    cuts = np.linspace(0, everybody, comm.size + 1).astype(int)
    mine = slice(cuts[comm.rank], cuts[comm.rank + 1])
    sums = np.zeros(everybody, np.uint64)
    for number in range(count):
        x, idx, weights = (part[mine] for part in tokens_of_round(number, everybody, hidden))
        d = ep.dispatch(x, idx, weights)
        out = d.output_buffer()
        for i, expert in enumerate(ep.local_experts):
            out[d.rows_of(i)] = work(d.expert(i), expert)
        y = ep.combine(out, d)
        del out
        d.release()
        assert y.tobytes() == truth(x, idx, weights).tobytes(), f"round {number}"
        # A sum of 64-bit words per token: it has no order, so ranks may hold any part of the tokens.
        sums[mine] = sums[mine] * np.uint64(31) + y.view(np.uint64).sum(axis=1, dtype=np.uint64)
    parts = comm.all_gather(sums)
    return hashlib.sha256(parts.sum(axis=0, dtype=np.uint64).tobytes()).hexdigest()


def memory(comm: xccl.Communicator, hidden: int, count: int) -> str:
    """Checks every sum, then the memory taken against the plan for the rows that really came."""
    experts = max(EXPERTS, comm.size)
    ep = xccl.ExpertParallel(comm, experts, hidden, TOKENS, TOPK, results=1)
    most_rows = 0
    for number in range(count):
        x, idx, weights = tokens_of_round(number * comm.size + comm.rank, TOKENS, hidden, experts)
        d = ep.dispatch(x, idx, weights)
        y = ep.combine(d.x, d)
        most_rows = max(most_rows, d.num_rows)
        d.release()
        ones = np.zeros_like(idx)  # every expert does nothing: factor 1
        ones[idx < 0] = -1
        assert y.tobytes() == truth(x, ones, weights).tobytes()
    taken = comm.committed_bytes
    plan = xccl.ExpertParallel.plan(
        comm.size, experts, hidden, TOKENS, TOPK, results=1, rank=comm.rank, rows=most_rows, in_place=True
    )
    assert abs(taken - plan.committed) <= plan.committed / 10, f"{taken} bytes taken\n{plan}"
    comm.barrier()
    return f"right; memory of a rank: {taken / 2**20:.2f} MiB, planned {plan.committed / 2**20:.2f} MiB"


if __name__ == "__main__":
    with xccl.init(timeout=100) as joined:
        answer = {"rounds": rounds, "memory": memory}[sys.argv[1]](joined, *map(int, sys.argv[2:]))
        if joined.rank == 0:
            print(answer)
