"""Expert load balancing: which rank hosts which experts, decided from how many tokens each expert got.

    plan = xccl.eplb.rebalance(load, slots=[9] * 8)          # or current=placement, budget=16, dead_ranks=[3]
    plan.placement[rank][slot]                               # an expert, or EMPTY
    plan.moves                                               # what has to be copied from where to where

A placement lists for each rank the experts in its slots. An expert in several places has replicas, which share its
tokens evenly. Nothing here communicates, and equal arguments give equal results, so every rank may compute the same.
"""

from xccl.eplb.hierarchical import rebalance_experts
from xccl.eplb.rebalance import Rebalanced, rebalance
from xccl.eplb.spread import EMPTY, Move, rank_loads

__all__ = ["EMPTY", "Move", "Rebalanced", "rank_loads", "rebalance", "rebalance_experts"]
