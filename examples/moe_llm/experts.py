"""Routing tokens to experts, and the arithmetic of one expert.

Called by the ranks (serving.py, local_experts.py) and by the one-process reference (truth.py), so that both sides
of a comparison choose experts by the same rule. Not here: moving tokens between ranks (colocated.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dense import silu

# An expert counts fully once its score is this much above that of the first expert left out, and fades to
# nothing towards it. A hard edge would be a discontinuity: float32 sums that differ in the last bit (another
# batch size is enough) could swap two experts with equal scores and change the text. Scores are logarithms,
# so this is 2 % of a contribution.
SOFT_EDGE = 0.02


@dataclass(frozen=True)
class MoeWeights:
    """Routers and experts of all layers; arrays are memory-mapped, so only experts that run are read."""

    router_weight: np.ndarray  # (layers, experts, hidden)
    router_bias: np.ndarray  # (layers, experts)
    gate_up: np.ndarray  # (layers, experts, 2 * expert_ffn, hidden)
    down: np.ndarray  # (layers, experts, expert_ffn, hidden)

    @property
    def layers(self) -> int:
        return self.gate_up.shape[0]

    @property
    def experts(self) -> int:
        return self.gate_up.shape[1]

    @property
    def hidden(self) -> int:
        return self.down.shape[3]


def choose_experts(scores: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
    """The topk best experts of each token, by number, and their weights; both (tokens, topk).

    With topk = experts every weight is 1, and the sum is the dense layer.
    """
    best_first = np.argsort(-scores, axis=1, kind="stable")
    # By number, not by score: the order in which rows are summed must not hang on the last bit of a score.
    chosen = np.sort(best_first[:, :topk], axis=1)
    if topk == scores.shape[1]:
        return chosen, np.ones(chosen.shape, np.float32)
    first_left_out = np.take_along_axis(scores, best_first[:, topk : topk + 1], axis=1)
    margin = np.take_along_axis(scores, chosen, axis=1) - first_left_out
    return chosen, np.clip(margin / np.float32(SOFT_EDGE), 0, 1)


def route(weights: MoeWeights, layer: int, x: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
    """`choose_experts` for hidden states x (tokens, hidden) of one layer."""
    return choose_experts(x @ weights.router_weight[layer].T + weights.router_bias[layer], topk)


def run_expert(gate_up: np.ndarray, down: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """One expert on the rows sent to it; writes (rows, hidden) into out.

    A stack of one-row products: what BLAS makes of a row otherwise depends, in its last bits, on how many rows come
    with it, and that changes when an expert moves or gets a replica.
    """
    gate, up = np.split(rows[:, None] @ gate_up.T, 2, axis=2)
    np.matmul(silu(gate) * up, down, out=out[:, None])


class OneProcessMoe:
    """The mixture of experts without any communication: the truth that the ranks are held to."""

    def __init__(self, weights: MoeWeights, topk: int) -> None:
        self._weights = weights
        self._topk = topk

    def __call__(self, layer: int, x: np.ndarray) -> np.ndarray:
        topk_idx, topk_weights = route(self._weights, layer, x, self._topk)
        total = np.zeros_like(x)
        for expert in range(self._weights.experts):
            tokens, slots = np.nonzero(topk_idx == expert)
            rows = np.empty((len(tokens), x.shape[1]), np.float32)
            run_expert(
                self._weights.gate_up[layer, expert], self._weights.down[layer, expert], x[tokens], rows
            )
            total[tokens] += topk_weights[tokens, slots, None] * rows
        return total
