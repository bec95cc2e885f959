"""All operations by name. Each is a function of a Scene, called on all members, with results checked on each.

They are in files of their own: messages.py, collectives.py, experts.py, groups.py.
"""

from __future__ import annotations

from collections.abc import Callable

from soak import collectives, experts, groups, messages
from soak.scene import Scene

PLAIN: dict[str, Callable[[Scene], None]] = {
    function.__name__: function
    for function in (
        messages.sendrecv,
        messages.exchange,
        messages.exchange_any,
        messages.pairs,
        messages.cancel,
        messages.too_late,
        messages.truncated,
        collectives.barrier,
        collectives.all_gather,
        collectives.all_gather_v,
        collectives.all_to_all,
        collectives.all_to_all_v,
        collectives.broadcast,
        collectives.all_reduce,
        collectives.reduce_scatter,
        collectives.reduce_scatter_v,
        experts.dispatch_combine,
        groups.keep_arrays,
    )
}
OPERATIONS = PLAIN | {
    function.__name__: function for function in (groups.split, groups.abort, groups.barrier_too_late)
}
# In which a rank may be killed: those that do not count on who is left after a failure of their own.
DEADLY = [*PLAIN, "split"]
