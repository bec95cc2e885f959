"""Two micro-batches in flight: while the experts work on one, the rows of the other are on their way.

python -m xccl run -n 2 examples/python/overlap.py
"""

import numpy as np

import xccl

EXPERTS, HIDDEN, TOKENS, TOPK, LAYERS = 8, 256, 64, 2, 6


def attention(x, layer):
    """Stands for what a model computes between two expert layers: nothing of it needs the library."""
    return np.tanh(x + layer)


def experts(ep, d):
    """Expert e multiplies by 1 / (1 + e)."""
    for i, expert in enumerate(ep.local_experts):
        d.expert(i)[:] *= np.float32(1 / (1 + expert))
    return d.x


def by_one_process(x, idx, weights):
    """The same layers without any library."""
    for layer in range(LAYERS):
        x = attention(x, layer)
        x = (weights / (1 + idx)).sum(1, keepdims=True).astype(np.float32) * x
    return x


with xccl.init() as comm:
    eps = [xccl.ExpertParallel(comm, EXPERTS, HIDDEN, TOKENS, TOPK, "float32") for _ in range(2)]
    rng = np.random.default_rng(comm.rank)
    batches = [rng.standard_normal((TOKENS, HIDDEN), dtype=np.float32) for _ in eps]
    routes = [(rng.integers(0, EXPERTS, (TOKENS, TOPK)), rng.random((TOKENS, TOPK), np.float32)) for _ in eps]
    expected = [by_one_process(x, *route) for x, route in zip(batches, routes, strict=True)]

    for layer in range(LAYERS):
        dispatching = []
        for ep, x, route in zip(eps, batches, routes, strict=True):
            dispatching.append(ep.dispatch_async(attention(x, layer), *route))  # the next attention overlaps
        combining = []
        for ep, pending in zip(eps, dispatching, strict=True):
            with pending.wait() as d:
                combining.append(ep.combine_async(experts(ep, d), d))  # the next experts overlap
        batches = [pending.wait() for pending in combining]

    for x, y in zip(batches, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    if comm.rank == 0:
        print(f"{len(eps)} micro-batches went through {LAYERS} layers on {comm.size} ranks and are right")
