"""Expert load balancing: which rank hosts which experts, decided from how many tokens each expert got.

    plan = xccl.eplb.rebalance(load, slots=[9] * 8)          # or current=placement, budget=16, dead_ranks=[3]
    plan.placement[rank][slot]                               # an expert, or EMPTY
    plan.moves                                               # what has to be copied from where to where
    migration = xccl.eplb.migrate(comm, weights, plan.moves) # does that, while serving goes on

A placement lists for each rank the experts in its slots. An expert in several places has replicas, which share its
tokens evenly. Only `migrate` communicates; the others give equal results for equal arguments, so every rank may compute
the same by itself.
"""

from xccl.eplb.hierarchical import rebalance_experts
from xccl.eplb.migrate import Migration, migrate
from xccl.eplb.rebalance import Rebalanced, rebalance
from xccl.eplb.spread import EMPTY, Move, rank_loads

__all__ = [
    "EMPTY",
    "Migration",
    "Move",
    "Rebalanced",
    "migrate",
    "rank_loads",
    "rebalance",
    "rebalance_experts",
]
