"""MoEfication: turns one layer's dense feed-forward network into E experts and a router.

After Zhang et al., "MoEfication: Transformer Feed-forward Layers are Mixtures of Experts",
arXiv:2110.01786. Called by prepare.py, once per layer. Not here: the cache on disk, and running
the experts (experts.py). No weight is changed: the experts are the dense layer's neurons,
regrouped, so all experts together give the dense output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dense import silu

PROFILE_TOKENS = 2000  # how many calibration tokens describe a neuron while clustering
PROFILE_SIZE = 256  # the description is projected down to this many numbers
# 1 would cluster by when a neuron is active, however strongly; 0 also by how strongly. Close to 0 is best:
# neurons that matter little gather in experts that can be left out at little cost.
PROFILE_SCALING = 0.2
CLUSTER_ROUNDS = 6
RIDGE = 0.2  # relative to the mean variance of a router input


@dataclass(frozen=True)
class LayerWeights:
    """A dense feed-forward network: gate and up are (ffn, hidden), down is (hidden, ffn)."""

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray

    def activations(self, x: np.ndarray) -> np.ndarray:
        """What each neuron multiplies its column of `down` with, (tokens, ffn)."""
        return silu(x @ self.gate.T) * (x @ self.up.T)


@dataclass(frozen=True)
class Router:
    """Scores are x @ weight.T + bias, (tokens, experts): the log of what each expert would contribute."""

    weight: np.ndarray
    bias: np.ndarray


def group_neurons(layer: LayerWeights, activations: np.ndarray, experts: int, seed: int) -> np.ndarray:
    """Neuron numbers of each expert, (experts, ffn / experts): neurons active together come together."""
    step = max(1, len(activations) // PROFILE_TOKENS)
    strength = np.abs(activations[::step]) * np.linalg.norm(layer.down, axis=0)
    # Every token counts the same, also beside those few whose activations are huge.
    strength /= np.linalg.norm(strength, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    # A random projection keeps the distances between neurons, near enough, at a tenth of the work.
    projection = rng.standard_normal((len(strength), PROFILE_SIZE)).astype(np.float32)
    size = np.maximum(np.linalg.norm(strength, axis=0)[:, None], np.finfo(np.float32).tiny)
    profiles = (strength.T @ projection) / size**PROFILE_SCALING
    return balanced_clusters(profiles, experts, rng)


def balanced_clusters(points: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """K-means with clusters of equal size; returns point numbers, (clusters, points / clusters)."""
    centres = points[rng.choice(len(points), clusters, replace=False)]
    for _ in range(CLUSTER_ROUNDS):
        members = _fill_clusters(_squared_distances(points, centres))
        centres = points[members].mean(axis=1)
    return members


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)


def _fill_clusters(distances: np.ndarray) -> np.ndarray:
    """Give every point a cluster, nearest pairs first, no cluster more than its share."""
    points, clusters = distances.shape
    share = points // clusters
    members: list[list[int]] = [[] for _ in range(clusters)]
    placed = [False] * points
    nearest_first = np.argsort(distances, axis=None)
    for point, cluster in zip(
        (nearest_first // clusters).tolist(), (nearest_first % clusters).tolist(), strict=True
    ):
        if not placed[point] and len(members[cluster]) < share:
            members[cluster].append(point)
            placed[point] = True
    return np.sort(np.array(members), axis=1)


def fit_router(layer: LayerWeights, groups: np.ndarray, x: np.ndarray, activations: np.ndarray) -> Router:
    """Ridge regression from the normed hidden state to the log of each expert's contribution.

    The logarithm because only the order of the experts matters, and because a few huge contributions
    would otherwise own the fit.
    """
    norms = contribution_norms(layer, groups, activations)
    target = np.log(norms + 0.1 * norms.mean())
    inputs = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    gram = (inputs.T @ inputs).astype(np.float64)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    solution = np.linalg.solve(gram, (inputs.T @ target).astype(np.float64)).astype(np.float32)
    return Router(weight=np.ascontiguousarray(solution[:-1].T), bias=solution[-1])


def contribution_norms(layer: LayerWeights, groups: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """The length of what each expert adds to each token's hidden state, (tokens, experts)."""
    return np.stack(
        [np.linalg.norm(activations[:, group] @ layer.down[:, group].T, axis=1) for group in groups], axis=1
    )
