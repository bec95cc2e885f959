"""`rebalance_experts`: the call of DeepSeek's EPLB, written anew from its published description.

For engines that know that call. It looks at totals, moves whatever it likes, and wants equally many slots on every
rank; `rebalance` does not, and is never worse. Not here: the greedy steps (greedy.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xccl.arguments import whole
from xccl.eplb.greedy import pack, replicas_by_total
from xccl.eplb.spread import Floats, Ints, loads_of
from xccl.errors import InvalidArgument


def rebalance_experts(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Ints, Ints, Ints]:
    """Replicas and places for the experts of each layer, as deepseek-ai/EPLB's function of this name.

    If the nodes divide the groups of experts: groups are packed to nodes, experts replicated within their node, and
    replicas packed to the GPUs of it, each time evenly. Otherwise groups and nodes do not count.

    Args:
        weight: (layers, experts): load of each expert.
        num_replicas: slots in all; a multiple of num_gpus, and no fewer than experts.
        num_groups: groups of experts; divides the experts.
        num_nodes: divides num_gpus.
        num_gpus: ranks. Rank r has slots r * num_replicas / num_gpus and the following.

    Returns:
        phy2log: (layers, num_replicas) int64: the expert in each slot.
        log2phy: (layers, experts, most replicas of one) int64: slots of each expert, then -1.
        logcnt: (layers, experts) int64: replicas of each.

    Raises InvalidArgument.
    """
    loads = loads_of(weight, "weight")
    if np.ndim(weight) != 2:
        raise InvalidArgument(f"weight has shape {np.shape(weight)}: expected (layers, experts)")
    experts = loads.shape[1]
    num_gpus = whole("num_gpus", num_gpus, 1)
    num_replicas = whole("num_replicas", num_replicas, experts)
    num_groups, num_nodes = whole("num_groups", num_groups, 1), whole("num_nodes", num_nodes, 1)
    for whole_name, of_all, part_name, part in (
        ("num_replicas", num_replicas, "num_gpus", num_gpus),
        ("num_gpus", num_gpus, "num_nodes", num_nodes),
        ("experts", experts, "num_groups", num_groups),
    ):
        if of_all % part:
            raise InvalidArgument(f"{part_name}={part} does not divide {whole_name}={of_all}")
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    phy2log = np.stack([_layer(load, num_replicas, num_groups, num_nodes, num_gpus) for load in loads])
    logcnt = np.stack([np.bincount(row, minlength=experts) for row in phy2log]).astype(np.int64)
    log2phy = np.full((*loads.shape, int(logcnt.max())), -1, np.int64)
    for layer, row in enumerate(phy2log):
        order = np.argsort(row, kind="stable")
        first = np.cumsum(logcnt[layer]) - logcnt[layer]
        log2phy[layer, row[order], np.arange(num_replicas) - first[row[order]]] = order
    return phy2log, log2phy, logcnt


def _layer(load: Floats, replicas: int, groups: int, nodes: int, gpus: int) -> Ints:
    """The expert in each slot: node by node, GPU by GPU."""
    members = np.arange(len(load)).reshape(groups, -1)
    node_of_group = pack(load.reshape(groups, -1).sum(1), nodes)
    slots = []
    for node in range(nodes):
        experts = members[node_of_group == node].ravel()
        count = replicas_by_total(load[experts], replicas // nodes - len(experts))
        # First replicas before second ones: of equally heavy ones, two of an expert then seldom meet on a GPU.
        replica = np.concatenate([np.flatnonzero(count > number) for number in range(count.max())])
        gpu = pack((load[experts] / count)[replica], gpus // nodes)
        slots.append(experts[replica[np.argsort(gpu, kind="stable")]])
    return np.concatenate(slots).astype(np.int64)
