"""Collectives of large arrays in the application area, which the others pull from where they lie."""

from __future__ import annotations

import numpy as np
import pytest

EACH = 60_000  # float64 elements for each rank: more than a round of copies holds


def filled(comm, lends, shape, value):
    a = comm.empty(shape, np.float64) if lends else np.empty(shape)
    a[...] = value
    return a


def value(rank, call, i):
    return 1e6 * rank + 1e3 * call + i % 997


def all_to_all(comm, lends, calls):
    i = np.arange(comm.size * EACH).reshape(comm.size, EACH)
    a = filled(comm, lends, (comm.size, EACH), 0)
    for call in range(calls):
        a[...] = value(comm.rank, call, i)
        out = comm.all_to_all(a)
        a[...] = -1  # from the return on it is this rank's alone
        for source in range(comm.size):
            np.testing.assert_array_equal(out[source], value(source, call, i[comm.rank]))


def all_gather(comm, lends, calls):
    i = np.arange(EACH)
    a = filled(comm, lends, (EACH,), 0)
    for call in range(calls):
        a[...] = value(comm.rank, call, i)
        out = comm.all_gather(a)
        a[...] = -1
        for source in range(comm.size):
            np.testing.assert_array_equal(out[source], value(source, call, i))


def all_gather_in_place(comm, lends, calls):
    i = np.arange(EACH)
    out = filled(comm, lends, (comm.size, EACH), 0)
    for call in range(calls):
        out[comm.rank] = value(comm.rank, call, i)
        comm.all_gather(out[comm.rank], out=out)
        for source in range(comm.size):
            np.testing.assert_array_equal(out[source], value(source, call, i))


def broadcast(comm, lends, calls):
    i = np.arange(EACH)
    a = filled(comm, lends, (EACH,), 0)
    for call in range(calls):
        root = call % comm.size
        a[...] = value(root, call, i) if comm.rank == root else -2
        comm.broadcast(a, root=root)
        np.testing.assert_array_equal(a, value(root, call, i))
        a[...] = -1


LENDERS = {"all": lambda rank: True, "some": lambda rank: rank % 2 == 0, "one": lambda rank: rank == 1}


def play(comm, collective, lenders, calls=6):
    collective(comm, LENDERS[lenders](comm.rank), calls)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("lenders", LENDERS)
@pytest.mark.parametrize("collective", [all_to_all, all_gather, all_gather_in_place, broadcast])
def test_what_is_lent_arrives_and_is_free_again_on_return(ranks, size, lenders, collective):
    ranks.run(play, size, collective, lenders)


def play_on_halves(comm, collective):
    with comm.split(comm.rank % 2) as half:
        play(half, collective, "all")


@pytest.mark.parametrize("collective", [all_to_all, broadcast])
def test_sub_groups_lend(ranks, collective):
    ranks.run(play_on_halves, 4, collective)
