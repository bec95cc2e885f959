"""Sub-groups that do the same things, communicators that end as they are meant to, arrays that outlive all that."""

from __future__ import annotations

from typing import Any

import numpy as np

import xccl
from soak import collectives, experts, messages
from soak.scene import Scene, expect

INNER = [
    messages.sendrecv,
    messages.exchange,
    messages.exchange_any,
    messages.cancel,
    collectives.all_to_all_v,
    collectives.broadcast,
    collectives.all_reduce,
    collectives.all_gather,
    experts.dispatch_combine,
]


def split(scene: Scene) -> None:
    """Sub-groups in any order, at the same time; each does something else."""
    colors = scene.common.integers(-1, 3, scene.size)
    keys = scene.common.integers(0, 3, scene.size)
    color = int(colors[scene.rank])
    made = scene.comm.split(color, int(keys[scene.rank]))
    if color < 0:
        assert made is None
        return
    order = sorted(np.flatnonzero(colors == color), key=lambda member: (keys[member], member))
    step = scene.path
    with made as sub:
        inner = scene.part(sub, [scene.members[member] for member in order])
        inner.check_members()
        luck = np.random.default_rng([scene.seed, *step, 4, color])
        for number, choice in enumerate(luck.integers(len(INNER), size=luck.integers(1, 5))):
            inner.begin(INNER[choice].__name__, *step, color, number + 1)
            INNER[choice](inner)


def abort(scene: Scene) -> None:
    """A duplicate that one rank gives up; the others learn why, and go on without it."""
    who = int(scene.common.integers(scene.size))
    with scene.comm.shrink() as duplicate:
        if scene.rank == who:
            duplicate.abort("as it is meant to")
            return
        error = expect(xccl.PeerFailed, _barriers, duplicate)
        assert error.ranks == [scene.members[who]], error
        assert "as it is meant to" in str(error), error
        with duplicate.shrink() as rest:
            scene.part(rest, [m for m in scene.members if m != scene.members[who]]).check_members()


def barrier_too_late(scene: Scene) -> None:
    """One rank does not come to a barrier in time, which ends the communicator; all shrink it and are there again."""
    if scene.size == 1:
        return
    absent = int(scene.common.integers(scene.size))
    try:
        scene.comm.barrier()  # all have done with what was before, though some may not know yet when others give up
        if scene.rank != absent:
            scene.comm.barrier(timeout=0.01)
            raise AssertionError("a barrier ended without all ranks")
    except (xccl.Timeout, xccl.PeerFailed):
        pass  # whose deadline passes first tells the others
    shrink(scene, without=[])


def shrink(scene: Scene, without: list[int]) -> None:
    """The survivors' communicator takes the place of the old one."""
    following = scene.comm.shrink()
    old, scene.comm = scene.comm, following
    scene.members = [member for member in scene.members if member not in without]
    scene.experts = None
    old.close()
    scene.check_members()


def _barriers(comm: xccl.Communicator) -> None:
    while True:
        comm.barrier()


def keep_arrays(scene: Scene) -> None:
    """Arrays of the application area come and go; what is in them stays, whatever becomes of communicators."""
    for _ in range(int(scene.own.integers(1, 8))):
        if len(scene.kept) > 12 or (scene.kept and scene.own.random() < 0.45):
            array, contents = scene.kept.pop(int(scene.own.integers(len(scene.kept))))
            scene.check(array, contents, "an array that was kept")
            continue
        shape: Any = int(2 ** scene.own.uniform(0, 20))
        contents = scene.own.integers(0, 256, shape, np.uint8)
        array = scene.comm.empty(shape, "uint8")
        array[...] = contents
        scene.kept.append((array, contents))
    scene.comm.barrier()
