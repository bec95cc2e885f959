"""Who hosts what, and what load that makes: the state that balancing works on, and what it costs to get there.

Used by the other files of this folder. Not here: any decision.

`Spread` is a set of experts for each rank; which slot of its rank an expert lies in does not change any load, and is
decided last (`slotted`), so that what stays on a rank stays in its slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xccl.arguments import slots_by_rank
from xccl.errors import InvalidArgument

EMPTY = -1  #: in a placement: a slot that holds no expert

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Hosts = np.ndarray[Any, np.dtype[np.bool_]]
Placement = Sequence[Sequence[int]]


class Move(NamedTuple):
    """One expert's weights, to be copied. `from_rank` and `from_slot` are -1 if no living rank has them any more."""

    expert: int
    from_rank: int
    from_slot: int
    to_rank: int
    to_slot: int


@dataclass(frozen=True)
class Spread:
    """A set of experts for each rank, and the load to be spread."""

    load: Floats  # (windows, experts)
    room: Ints  # (ranks,): slots; none on a dead rank
    hosts: Hosts  # (experts, ranks)

    @property
    def replicas(self) -> Ints:
        """(experts,): how many ranks host each."""
        return np.asarray(self.hosts.sum(1))

    @property
    def free(self) -> Ints:
        """(ranks,): slots that hold nothing."""
        return np.asarray(self.room - self.hosts.sum(0))

    @property
    def shares(self) -> Floats:
        """(windows, experts): load of one replica."""
        return np.asarray(self.load / np.maximum(self.replicas, 1))

    @property
    def rank_loads(self) -> Floats:
        """(windows, ranks)."""
        return self.shares @ self.hosts

    @property
    def hottest(self) -> float:
        """What balancing lowers: the load of the hottest rank, added up over the windows."""
        return float(self.rank_loads.max(1).sum())

    def hosting(self, *changes: tuple[int, int, bool]) -> Spread:
        """The same with some changes: (expert, rank, whether it is to be there)."""
        hosts = self.hosts.copy()
        for expert, rank, there in changes:
            hosts[expert, rank] = there
        return Spread(self.load, self.room, hosts)

    def newcomers(self, before: Spread) -> int:
        """How many experts must be brought to a rank that did not host them before."""
        return int((self.hosts & ~before.hosts).sum())


def loads_of(load: Any, name: str = "load") -> Floats:
    """(windows, experts), from that or from (experts,). InvalidArgument, naming the argument, for anything else."""
    try:
        found = np.asarray(load, np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name}: expected numbers, (experts,) or (windows, experts)") from None
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[1] == 0:
        raise InvalidArgument(f"{name} has shape {np.shape(load)}: expected (experts,) or (windows, experts)")
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise InvalidArgument(
            f"{name} has a negative number, or one that is not finite: expected counts of tokens"
        )
    return found


def hosts_of(name: str, placement: Placement, experts: int) -> Hosts:
    """(experts, ranks), from a placement. InvalidArgument, naming the argument, for an expert that there is not."""
    hosts = np.zeros((experts, len(placement)), np.bool_)
    for rank, slots in enumerate(placement):
        for slot, expert in enumerate(slots):
            if not EMPTY <= expert < experts:
                raise InvalidArgument(
                    f"{name}: rank {rank} has expert {expert} in slot {slot}: "
                    f"expected -1 (empty) to {experts - 1}"
                )
            if expert != EMPTY:
                hosts[expert, rank] = True
    return hosts


def slotted(spread: Spread, current: Placement) -> list[list[int]]:
    """The experts of each rank in its slots: those that were there stay where they are, others fill the gaps."""
    placement = []
    for rank, before in enumerate(current):
        coming = set(np.flatnonzero(spread.hosts[:, rank]).tolist())
        slots = []
        for expert in before:
            stays = expert in coming
            coming.discard(expert)
            slots.append(expert if stays else EMPTY)
        gaps = [slot for slot, expert in enumerate(slots) if expert == EMPTY]
        for slot, expert in zip(gaps, sorted(coming), strict=False):
            slots[slot] = expert
        placement.append(slots)
    return placement


def moves_between(before: Placement, after: Placement, dead: Sequence[int] = ()) -> tuple[Move, ...]:
    """What has to be copied. Of several ranks that have an expert, the one that has to send least so far sends it."""
    where: dict[int, list[tuple[int, int]]] = {}
    for rank, slots in enumerate(before):
        for slot, expert in enumerate(slots):
            if expert != EMPTY and rank not in dead:
                where.setdefault(expert, []).append((rank, slot))
    sending: Counter[int] = Counter()
    moves = []
    for rank, slots in enumerate(after):
        for slot, expert in enumerate(slots):
            if expert == EMPTY or (slot < len(before[rank]) and before[rank][slot] == expert):
                continue
            source = min(where.get(expert, [(-1, -1)]), key=lambda place: (sending[place[0]], place))
            sending[source[0]] += 1
            moves.append(Move(expert, *source, rank, slot))
    return tuple(moves)


def rank_loads(load: Any, placement: Placement) -> Floats:
    """What load each rank has under a placement: (ranks,), or (windows, ranks) if `load` has windows.

    Args:
        load: (experts,) or (windows, experts): tokens of each expert.
        placement: for each rank the experts in its slots, -1 for an empty one; replicas share the tokens evenly.

    Raises InvalidArgument; also if an expert that has tokens is nowhere.
    """
    loads = loads_of(load)
    placement = slots_by_rank("placement", placement)
    hosts_of("placement", placement, loads.shape[1])  # checks
    count = np.zeros((loads.shape[1], len(placement)))
    for rank, slots in enumerate(placement):
        for expert in slots:
            if expert != EMPTY:
                count[expert, rank] += 1
    replicas = count.sum(1)
    homeless = np.flatnonzero((replicas == 0) & (loads > 0).any(0))
    if homeless.size:
        raise InvalidArgument(f"placement: expert {homeless[0]} is on no rank, but has tokens")
    found = (loads / np.maximum(replicas, 1)) @ count
    return np.asarray(found if np.ndim(load) == 2 else found[0])
