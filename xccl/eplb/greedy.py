"""Greedy choices: which experts get replicas, and which rank gets which replica.

Used by rebalance.py and hierarchical.py. Not here: making the result better afterwards (search.py).
"""

from __future__ import annotations

import numpy as np

from xccl.eplb.spread import Floats, Hosts, Ints


def replicas_by_windows(load: Floats, extra: int, most: int) -> Ints:
    """How many replicas each expert is to have: `extra` more than experts, at most `most` of one.

    As in the paper: what is lowered is the sum over windows of the hottest expert's load, and each replica goes where
    it lowers that most. Where nothing lowers it, since two experts are equally hot, to the one with the largest share.
    """
    replicas = np.ones(load.shape[1], np.int64)
    for _ in range(extra):
        shares = load / replicas
        allowed = replicas < most
        if not allowed.any():
            break
        hottest = shares.argmax(1)
        windows = np.arange(len(load))
        others = shares.copy()
        others[windows, hottest] = 0
        now = shares[windows, hottest]
        then = np.maximum(others.max(1), load[windows, hottest] / (replicas[hottest] + 1))
        gain = np.zeros(len(replicas))
        np.add.at(gain, hottest, now - then)
        # lexsort: by gain, then by share; not allowed last.
        replicas[np.lexsort((shares.sum(0), gain, allowed))[-1]] += 1
    return replicas


def replicas_by_total(load: Floats, extra: int) -> Ints:
    """The same for one window, (experts,): each replica goes to the expert whose replicas have the largest share."""
    replicas = np.ones(len(load), np.int64)
    for _ in range(extra):
        replicas[(load / replicas).argmax()] += 1
    return replicas


def pack(weights: Floats, packs: int) -> Ints:
    """For each weight its pack: equally many in each, heaviest first, always to the lightest pack with room."""
    each = len(weights) // packs
    chosen = np.empty(len(weights), np.int64)
    filled, total = np.zeros(packs, np.int64), np.zeros(packs)
    for item in np.argsort(-weights, kind="stable"):
        lightest = np.where(filled < each, total, np.inf).argmin()
        chosen[item] = lightest
        filled[lightest] += 1
        total[lightest] += weights[item]
    return chosen


def place(load: Floats, replicas: Ints, room: Ints) -> Hosts:
    """(experts, ranks): replicas on ranks with that many slots, heaviest first, always to the least loaded rank.

    No rank gets an expert twice: a replica for which there is no other rank is left out. Every expert has one, if
    there are as many slots as experts.
    """
    shares = load.sum(0) / replicas
    hosts = np.zeros((len(replicas), len(room)), np.bool_)
    free, total = room.copy(), np.zeros(len(room))
    unplaced = len(replicas)  # experts of which no replica has been placed
    for expert in np.argsort(-shares, kind="stable"):
        unplaced -= 1
        for number in range(replicas[expert]):
            if number > 0 and free.sum() <= unplaced:
                break
            rank = np.where((free > 0) & ~hosts[expert], total, np.inf).argmin()
            if free[rank] <= 0 or hosts[expert, rank]:
                break
            hosts[expert, rank] = True
            free[rank] -= 1
            total[rank] += shares[expert]
    return hosts
