"""Attention and experts on different ranks: A2E, E2A and the loop of the experts.

After XCCL in xDeepServe (arXiv:2508.02520, section 3.3). `DisaggregatedExperts` is in experts.py; what the two routings
do is in direct.py and trampoline.py, which of them pays in cost.py.
"""

from xccl.disaggregated.cost import Cost, Load, Shape
from xccl.disaggregated.experts import DisaggregatedExperts
from xccl.disaggregated.lane import Batch, Counters

__all__ = ["Batch", "Cost", "Counters", "DisaggregatedExperts", "Load", "Shape"]
