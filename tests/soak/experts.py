"""Dispatch and combine: both layouts, ranks without tokens, routings used again, buffers of the library or not."""

from __future__ import annotations

import numpy as np
import truth

import xccl
from soak.scene import Scene


def dispatch_combine(scene: Scene) -> None:
    """Some calls on an object that goes on to later steps, or on a new one."""
    if scene.experts is not None and scene.common.random() < 0.3:
        scene.experts[0].close()
        scene.experts = None
    if scene.experts is None:
        shape = _any_shape(scene)
        made = xccl.ExpertParallel(
            scene.comm,
            shape.num_experts,
            shape.hidden,
            shape.max_tokens,
            shape.topk,
            shape.dtype,
            layout=shape.layout,
        )
        scene.experts = made, shape
    ep, shape = scene.experts
    for _ in range(int(scene.common.integers(1, 4))):
        tokens = scene.common.integers(0, shape.max_tokens, scene.size, endpoint=True)
        tokens[scene.common.random(scene.size) < 0.3] = 0
        batches = [truth.random_batch(scene.common, shape, int(n)) for n in tokens]
        mine = batches[scene.rank]
        with ep.dispatch(_tokens(scene, ep, mine), mine.topk_idx, mine.topk_weights) as d:
            _check_rows(scene, d, batches, shape)
            if scene.common.random() < 0.3:
                _dispatch_again(scene, ep, d, batches, shape)
            _combine(scene, ep, d, mine, shape)


def _any_shape(scene: Scene) -> truth.Shape:
    draw = scene.common
    return truth.Shape(
        num_experts=int(draw.integers(1, 12)),
        hidden=int(draw.choice([1, 7, 16, 64, 250, 1024])),
        max_tokens=int(draw.choice([1, 4, 16])),
        topk=int(draw.integers(1, 5)),
        dtype=("float32", "float16", "bfloat16")[draw.integers(3)],
        layout=("expert", "token")[draw.integers(2)],
    )


def _tokens(scene: Scene, ep: xccl.ExpertParallel, batch: truth.Batch) -> np.ndarray:
    if scene.own.random() < 0.4:
        x = ep.input_buffer(len(batch.x))
        x[...] = batch.x
        return x
    return scene.placed(batch.x)


def _check_rows(scene: Scene, d: xccl.Dispatched, batches: list[truth.Batch], shape: truth.Shape) -> None:
    expected = truth.dispatched(scene.rank, batches, shape)
    scene.check(d.x, expected.x, "d.x")
    scene.check(d.counts, expected.counts, "d.counts")
    scene.check(d.src_rank, expected.src_rank, "d.src_rank")
    scene.check(d.src_token, expected.src_token, "d.src_token")
    scene.check(d.weights, expected.weights, "d.weights")
    scene.check(d.index, expected.index, "d.index")


def _dispatch_again(
    scene: Scene, ep: xccl.ExpertParallel, d: xccl.Dispatched, batches: list[truth.Batch], shape: truth.Shape
) -> None:
    """Other rows, such as gradients, go the same way."""
    others = [
        truth.Batch(truth.ordinary_values(scene.common, b.x.shape, shape.dtype), b.topk_idx, b.topk_weights)
        for b in batches
    ]
    with ep.dispatch(_tokens(scene, ep, others[scene.rank]), routing=d.routing) as again:
        _check_rows(scene, again, others, shape)


def _combine(
    scene: Scene, ep: xccl.ExpertParallel, d: xccl.Dispatched, batch: truth.Batch, shape: truth.Shape
) -> None:
    in_place = shape.layout == "expert" and scene.own.random() < 0.3
    rows = d.output_buffer() if scene.own.random() < 0.5 else np.empty((d.num_rows, shape.hidden), ep.dtype)
    rows = d.x if in_place else rows
    for i, expert in enumerate(ep.local_experts):
        rows[d.rows_of(i)] = truth.scale(expert, d.expert(i))
    if scene.own.random() < 0.3:
        batch = truth.Batch(batch.x, batch.topk_idx, batch.topk_weights[::-1].copy())
        weights = batch.topk_weights
    else:
        weights = None
    out = scene.maybe_out(batch.x.shape, ep.dtype)
    y = ep.combine(rows, d, weights=weights, out=out)
    scene.check(y, truth.combined(batch, shape, truth.scale), "sums")
