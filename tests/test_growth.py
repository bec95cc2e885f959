"""A rank that joins and closes again and again has no more of the machine in the end than in the beginning.

200 times here; `make test PYTEST_ARGS='-k growth --cycles 10000'` takes some minutes.
"""

from __future__ import annotations

import mmap
import socket

import numpy as np
import pytest
from growth import Taken, grown
from ranks import UNDER_ASAN

import xccl

pytestmark = pytest.mark.skipif(UNDER_ASAN, reason="AddressSanitizer keeps freed memory back")
MOMENTS = 20  # at which it is looked
MOST_GROWTH = 1 << 20  # bytes; a page for each cycle between the second quarter and the last would be more


def use(comm):
    """Memory of every kind is taken: arrays, channels, scratch, a sub-group, experts."""
    other = (comm.rank + 1) % comm.size
    x = comm.empty(30_000, "float32")
    x[:] = comm.rank
    y = np.empty_like(x)
    for n in (4, 1000, 30_000):
        comm.sendrecv(x[:n], other, y[:n], other)
    comm.all_reduce(y)
    comm.all_to_all_v(np.ones(comm.size), np.ones(comm.size, np.int64))
    with comm.split(0) as sub:
        sub.barrier()
    with comm.shrink() as duplicate:
        duplicate.barrier()
    with xccl.ExpertParallel(comm, 4, 16, 4, 2, dtype="float32") as ep:
        tokens = np.ones((4, 16), np.float32)
        with ep.dispatch(tokens, np.zeros((4, 2), np.int64), np.ones((4, 2), np.float32)) as d:
            ep.combine(d.x, d)


def cycles(part, count):
    for _ in range(count):
        with part.init() as comm:
            use(comm)
        del comm
    return Taken.now()


@pytest.mark.timeout(3600)
def test_nothing_grows_with_the_number_of_joins(ranks, request):
    each = max(10, request.config.getoption("--cycles") // MOMENTS)
    moments = []
    for _ in range(MOMENTS):
        found = ranks.run(cycles, 2, each, joins=False)
        # A thread that has closed first would count what the other still has.
        moments.append([Taken.now()] if ranks.provider == "local" else found)
    for history in zip(*moments, strict=True):
        assert len({taken.pid for taken in history}) == 1
        assert grown(history, MOST_GROWTH) == [], [*history]


LEAK = 300_000


def leak(kept, what):
    """About as much as a communicator would leave behind."""
    if what == "memory":  # not of the allocator: it may have freed memory of earlier tests to give
        if not kept:
            kept.append(mmap.mmap(-1, MOMENTS * LEAK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        kept[0].write(b"x" * LEAK)
    if what == "descriptors":
        kept.append(socket.socket())
    if what == "mappings":
        kept.append([np.memmap("/proc/self/exe", mode="r", shape=4096, offset=0) for _ in range(10)])


@pytest.mark.parametrize("what", ["nothing", "memory", "descriptors", "mappings"])
def test_growth_is_noticed(what):
    kept, history = [], []
    for _ in range(MOMENTS):
        leak(kept, what)
        history.append(Taken.now())
    for one in kept:
        if isinstance(one, socket.socket):
            one.close()
    found = grown(history, MOST_GROWTH)
    assert any(text.startswith(what) for text in found) if what != "nothing" else found == []
