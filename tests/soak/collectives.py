"""Collectives with and without `out=`, from and into both kinds of memory, with shares of any size, none as well."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import truth

import xccl
from soak.scene import Scene, expect

TAILS = [(), (3,), (2, 5)]  # what a row is made of


def _shape(scene: Scene, share: int) -> tuple[np.dtype, tuple[int, ...]]:
    """A dtype, and a shape of about that many bytes."""
    dtype, tail = scene.dtype(), TAILS[scene.common.integers(len(TAILS))]
    return dtype, (share // (dtype.itemsize * int(np.prod(tail))), *tail)


def barrier(scene: Scene) -> None:
    """A few."""
    for _ in range(int(scene.common.integers(1, 20))):
        scene.comm.barrier()


def all_gather(scene: Scene) -> None:
    """Everybody's share."""
    dtype, shape = _shape(scene, scene.length(500_000))
    out = scene.maybe_out((scene.size, *shape), dtype)
    found = scene.comm.all_gather(scene.placed(scene.content(scene.rank, 0, shape, dtype)), out=out)
    assert out is None or found is out
    scene.check(found, np.stack([scene.content(m, 0, shape, dtype) for m in range(scene.size)]), "rows")


def _rows(scene: Scene, most: int) -> list[int]:
    """How many rows somebody has for somebody; often none."""
    few = int(scene.common.integers(1, most))
    return [
        int(n) for n in scene.common.integers(0, few, scene.size) * (scene.common.random(scene.size) < 0.8)
    ]


def _row_type(scene: Scene) -> tuple[np.dtype, tuple[int, ...]]:
    return scene.dtype(), TAILS[scene.common.integers(len(TAILS))]


def _room_for(scene: Scene, rows: int, tail: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    return scene.maybe_out((rows + int(scene.own.integers(0, 3)), *tail), dtype)


def all_gather_v(scene: Scene) -> None:
    """As many rows as each has; with too little room at first, as luck has it."""
    dtype, tail = _row_type(scene)
    counts = _rows(scene, 20_000)
    total = sum(counts)
    mine = scene.placed(scene.content(scene.rank, 0, (counts[scene.rank], *tail), dtype))
    if total and scene.common.random() < 0.2:
        if scene.own.random() < 0.5:
            expect(xccl.Truncated, scene.comm.all_gather_v, mine, out=scene.room((total - 1, *tail), dtype))
        else:
            scene.comm.all_gather_v(mine)
    rows, found = scene.comm.all_gather_v(mine, out=_room_for(scene, total, tail, dtype))
    assert found.tolist() == counts
    parts = [scene.content(m, 0, (counts[m], *tail), dtype) for m in range(scene.size)]
    scene.check(rows, np.concatenate(parts), "rows")


def all_to_all(scene: Scene) -> None:
    """Part r of each to rank r."""
    dtype, shape = _shape(scene, scene.length(200_000))
    shape = (scene.size, *shape)
    out = scene.maybe_out(shape, dtype)
    found = scene.comm.all_to_all(scene.placed(scene.content(scene.rank, 0, shape, dtype)), out=out)
    assert out is None or found is out
    parts = [scene.content(m, 0, shape, dtype)[scene.rank] for m in range(scene.size)]
    scene.check(found, np.stack(parts), "parts")


def all_to_all_v(scene: Scene) -> None:
    """Any numbers of rows from each to each."""
    dtype, tail = _row_type(scene)
    table = np.array([_rows(scene, 5_000) for _ in range(scene.size)])
    give = [scene.content(m, 0, (int(table[m].sum()), *tail), dtype) for m in range(scene.size)]
    starts = np.cumsum(table, axis=1) - table
    me = scene.rank
    out = _room_for(scene, int(table[:, me].sum()), tail, dtype)
    rows, counts = scene.comm.all_to_all_v(scene.placed(give[me]), table[me], out=out)
    assert counts.tolist() == table[:, me].tolist()
    parts = [give[m][starts[m, me] : starts[m, me] + table[m, me]] for m in range(scene.size)]
    scene.check(rows, np.concatenate(parts), "rows")


def broadcast(scene: Scene) -> None:
    """In place, or into `out`."""
    dtype, shape = _shape(scene, scene.length())
    root = int(scene.common.integers(scene.size))
    mine = scene.placed(scene.content(scene.rank, 0, shape, dtype))
    out = scene.maybe_out(shape, dtype)
    found = scene.comm.broadcast(mine, root, out=out)
    assert found is (mine if out is None else out)
    scene.check(found, scene.content(root, 0, shape, dtype), f"from root {root}")


# --- Reductions ---


def _numbers(scene: Scene, member: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    rng = np.random.default_rng([scene.seed, *scene.path, 3, scene.members[member]])
    if dtype == np.int64:
        return rng.integers(-(2**63), 2**63, shape, np.int64)
    return rng.standard_normal(shape, np.float32).astype(dtype)


def _reduced(arrays: list[np.ndarray], op: str) -> np.ndarray:
    """In rank order, each step in float32, rounded once at the end; int64 wraps."""
    step = np.add if op == "sum" else np.maximum
    kind = arrays[0].dtype
    total = arrays[0] if kind == np.int64 else arrays[0].astype(np.float32)
    for one in arrays[1:]:
        total = step(total, one if kind == np.int64 else one.astype(np.float32))
    return total if kind == np.int64 else truth.rounded(total, kind.name)


def _reduction(scene: Scene, most: int) -> tuple[np.dtype, str, int]:
    kinds = [np.float32, np.float16, np.int64, ml_dtypes.bfloat16]
    dtype = np.dtype(kinds[scene.common.integers(len(kinds))])
    return dtype, ("sum", "max")[scene.common.integers(2)], scene.length(most) // dtype.itemsize


def all_reduce(scene: Scene) -> None:
    """Also into the input itself."""
    dtype, op, count = _reduction(scene, 400_000)
    arrays = [_numbers(scene, m, (count,), dtype) for m in range(scene.size)]
    expected = _reduced(arrays, op)
    mine = scene.placed(arrays[scene.rank])
    out = mine if scene.own.random() < 0.2 else scene.maybe_out((count,), dtype)
    found = scene.comm.all_reduce(mine, op, out=out)
    assert out is None or found is out
    scene.check(found, expected, op)


def reduce_scatter(scene: Scene) -> None:
    """Equal parts."""
    dtype, op, count = _reduction(scene, 200_000)
    shape = (scene.size, count)
    arrays = [_numbers(scene, m, shape, dtype) for m in range(scene.size)]
    out = scene.maybe_out((count,), dtype)
    found = scene.comm.reduce_scatter(scene.placed(arrays[scene.rank]), op, out=out)
    scene.check(found, _reduced([array[scene.rank] for array in arrays], op), op)


def reduce_scatter_v(scene: Scene) -> None:
    """Parts of any size."""
    dtype, op, width = _reduction(scene, 200)
    counts = _rows(scene, 300)
    arrays = [_numbers(scene, m, (sum(counts), width), dtype) for m in range(scene.size)]
    start = sum(counts[: scene.rank])
    part = slice(start, start + counts[scene.rank])
    out = scene.maybe_out((counts[scene.rank], width), dtype)
    found = scene.comm.reduce_scatter_v(scene.placed(arrays[scene.rank]), counts, op, out=out)
    scene.check(found, _reduced([array[part] for array in arrays], op), op)
