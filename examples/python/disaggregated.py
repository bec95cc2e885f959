"""Attention on some ranks, experts on the others: a few layers, checked, and what each rank has written to do it.

python -m xccl run -n 8 examples/python/disaggregated.py            3 attention and 5 expert ranks, both routings
python examples/python/disaggregated.py 160:288                     as many as you like, as threads of one process
"""

import sys

import numpy as np

import xccl

SHAPE = {"hidden": 64, "max_tokens": 4, "topk": 8, "dtype": "float32"}
LAYERS = 3


def think(de, rank):
    """An attention rank: a micro-batch for each layer. Expert e multiplies by 1 + e, so the sums are known."""
    rng = np.random.default_rng(rank)
    for layer in range(LAYERS):
        x = rng.integers(-8, 8, (SHAPE["max_tokens"], SHAPE["hidden"])).astype(np.float32)
        topk_idx = rng.integers(0, de.experts, (len(x), SHAPE["topk"]))
        topk_weights = np.full(topk_idx.shape, 0.125, np.float32)
        de.a2e(x, topk_idx, topk_weights, tag=layer)
        # Here the next micro-batch's attention could be computed: several may be in flight.
        assert np.array_equal(de.e2a(), (topk_weights * (1 + topk_idx)).sum(1, keepdims=True) * x)
    de.end()
    return de.counters()


def serve(de):
    """An expert rank: whatever layer comes, until attention says that there is no more."""

    def compute(batch):
        assert 0 <= batch.tag < LAYERS
        for i, expert in enumerate(de.local_experts):
            batch.expert(i)[:] *= 1 + expert
        return batch.x

    de.serve(compute)
    return de.counters()


def run(comm, attention, routing):
    """What this rank has counted, and what the cost model says of it."""
    experts = comm.size - attention
    with xccl.DisaggregatedExperts(comm, attention, num_experts=experts, **SHAPE, routing=routing) as de:
        if de.is_expert:
            load = de.cost.expert(routing, comm.rank - attention)
            counted = serve(de)
        else:
            load = de.cost.attention(routing)
            counted = think(de, comm.rank)
        assert (counted.records, counted.fan_out) == (LAYERS * load.records, load.fan_out)
        return counted, load


def table(attention, found):
    """The records of a layer, of the busiest rank of each kind; every rank has checked its own."""
    print(f"{attention} attention and {len(found['direct']) - attention} expert ranks")
    print(f"{'':22} {'records of a layer':>18} {'by the model':>12} {'to ranks':>8}")
    for kind, some in (("attention", slice(attention)), ("expert", slice(attention, None))):
        for routing, ranks in found.items():
            counted, load = max(ranks[some], key=lambda rank: rank[0].records)
            name = f"{kind} {routing}"
            print(f"{name:22} {counted.records // LAYERS:18} {load.records:12} {counted.fan_out:8}")


def main():
    """On the ranks of a launcher, or on as many threads as the command line says."""
    if len(sys.argv) > 1:
        attention, experts = map(int, sys.argv[1].split(":"))
        found = {
            routing: xccl.spawn(run, attention + experts, args=(attention, routing), provider="local")
            for routing in ("direct", "trampoline")
        }
        return table(attention, found)
    with xccl.init() as comm:
        attention = 3 * comm.size // 8
        for routing in ("direct", "trampoline"):
            counted, _ = run(comm, attention, routing)
            if comm.rank == 0:
                print(f"{routing}: {LAYERS} layers are right; attention writes to {counted.fan_out} ranks")
    return None


if __name__ == "__main__":
    main()
