"""How every public function is called rightly, of what kind its arguments are, and the wrong values of each kind.

Used by test_misuse.py, which makes all pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import xccl
from xccl import eplb

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Things:
    """The objects of one rank on which everything is called."""

    def __init__(self, comm: xccl.Communicator) -> None:
        self.comm = comm
        self.ep = xccl.ExpertParallel(comm, 2, 4, 3, 1, results=3)
        self.x = np.ones((2, 4), BFLOAT16)
        self.idx = np.zeros((2, 1), np.int32)
        self.weights = np.ones((2, 1), np.float32)
        self.d = self.ep.dispatch(self.x, self.idx, self.weights)
        self.floats = np.ones((comm.size, 3), np.float32)
        self.moving = np.zeros((2, 3), np.float32)

    def waiting(self) -> xccl.Request:
        """A receive whose message is there."""
        self.comm.send(self.floats, self.comm.rank, 5)
        return self.comm.irecv(np.empty_like(self.floats), self.comm.rank, 5)

    def view(self) -> xccl.View:
        self.comm.send(self.floats, self.comm.rank, 6)
        return self.comm.recv_view(self.comm.rank, 6)


# --- Wrong values, by the kind of the argument; functions make them of the right one ---


def with_gaps(array):
    """The same numbers with gaps between them."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def misaligned(array):
    """The same numbers at an odd address."""
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    out = np.frombuffer(raw.data, array.dtype).reshape(array.shape)
    out[...] = array
    return out


def read_only(array):
    """The same numbers, locked."""
    locked = array.copy()
    locked.flags.writeable = False
    return locked


def of_objects(array):
    """Python's own, of the same shape."""
    return array.astype(object)


def of_another_dtype(array):
    """The same numbers in eight bytes each."""
    return array.astype(np.float64)


def of_another_shape(array):
    """One number more, and one dimension."""
    return np.concatenate([array.reshape(-1), array.reshape(-1)[:1]])


NO_ARRAY = [[1.0, 2.0], "text", 7, of_objects]
NO_WHOLE_NUMBER = [1.5, "1", [1], np.float32(1), 1j]
NO_SEQUENCE = [5, "01", [0.5], [None]]

WRONG: dict[str, list[Any]] = {
    "input": NO_ARRAY,  # copied if need be
    "message": [*NO_ARRAY, with_gaps],
    "room": [*NO_ARRAY, with_gaps, read_only],
    "rows": [*NO_ARRAY, with_gaps, misaligned, of_another_dtype, of_another_shape],
    "result": [*NO_ARRAY, with_gaps, misaligned, of_another_dtype, of_another_shape, read_only],
    "seconds": [0, -1, float("nan"), float("inf"), 10**400, "1", True, [1.0], 1j],
    "rank": [-7, 99, 2**40, *NO_WHOLE_NUMBER],
    "tag": [-7, 2**31, *NO_WHOLE_NUMBER],
    "number": [2**40, *NO_WHOLE_NUMBER],
    "size": [0, -1, 2**70, *NO_WHOLE_NUMBER],
    "dtype": ["nonsense", 3.5, "O", [("a", "nonsense")]],
    "row dtype": ["nonsense", 3.5, "O", "int8", ">f4", "float64"],
    "shape": [-1, (2, -1), 1.5, "3", (2, "3"), [[1]]],
    "flag": ["yes", 2, b"1", [True]],
    "option": ["nonsense", 3, ["int8"], b"int8"],
    "object": [None, 3, "text", []],
    "name": [3, b"bytes", ["a"], "new\nline"],
    "text": [3, None, b"bytes", ["a"]],
    "sequence": [5, "01", 1.5],
    "experts": [*NO_SEQUENCE, [[0]], [99], [-5]],
    "ranks": [*NO_SEQUENCE, [[0]], [99], [-1]],
    "slots": [*NO_SEQUENCE, [[0]], [-1]],
    "counts": [*NO_SEQUENCE, [[0]], [99], [-1], None],
    "moves": [*NO_SEQUENCE, [[0]], [[0, 0, 0, 0, 99]], [[0, 9, 0, 0, 0]]],
    "placement": [5, "01", [0, 1], [["a"]], [[0.5, 1]], [[0, 99]], [[0, -2]]],
    "load": ["many", None, 3, [-1, 2], [float("nan"), 1], [[[1]]], [[1], [1, 2]], ["a", "b"], []],
}
WRONG["number or nothing"] = [-1, *WRONG["number"]]
WRONG["object but nothing"] = WRONG["object"][1:]


@dataclass
class Function:
    """How a public function is called: on what, with which right arguments, of which kinds."""

    of: Callable[[Things], Callable[..., Any]]
    right: Callable[[Things], dict[str, Any]] = lambda things: {}
    kinds: dict[str, str] = field(default_factory=dict)


def waited(start):
    """A call in two halves, as one."""
    return lambda **arguments: start(**arguments).wait()


def communicator(name, right=lambda t: {}, **kinds):
    return Function(lambda t: getattr(t.comm, name), right, kinds)


def arrived(things, tag, **arguments):
    """Arguments of a receive, whose message has been sent."""
    things.comm.send(things.floats, things.comm.rank, tag)
    return {"src": things.comm.rank, "tag": tag, **arguments}


FUNCTIONS: dict[str, Function] = {
    "Communicator.empty": communicator(
        "empty", lambda t: {"shape": 3, "dtype": "f4"}, shape="shape", dtype="dtype"
    ),
    "Communicator.barrier": communicator("barrier", timeout="seconds"),
    "Communicator.split": communicator(
        "split", lambda t: {"color": 0, "key": 0}, color="number", key="number", timeout="seconds"
    ),
    "Communicator.shrink": communicator("shrink", timeout="seconds"),
    "Communicator.all_gather": communicator(
        "all_gather",
        lambda t: {"a": t.floats, "out": np.empty((t.comm.size, *t.floats.shape), "f4")},
        a="input",
        out="result",
        timeout="seconds",
    ),
    "Communicator.all_gather_v": communicator(
        "all_gather_v",
        lambda t: {"a": t.floats, "out": np.empty((9, 3), "f4")},
        a="input",
        out="result",
        timeout="seconds",
    ),
    "Communicator.all_to_all": communicator(
        "all_to_all",
        lambda t: {"a": t.floats, "out": np.empty_like(t.floats)},
        a="input",
        out="result",
        timeout="seconds",
    ),
    "Communicator.all_to_all_v": communicator(
        "all_to_all_v",
        lambda t: {"a": t.floats, "send_counts": [1] * t.comm.size, "out": np.empty((9, 3), "f4")},
        a="input",
        send_counts="counts",
        out="result",
        timeout="seconds",
    ),
    "Communicator.broadcast": communicator(
        "broadcast",
        lambda t: {"a": t.floats, "root": 0, "out": np.empty_like(t.floats)},
        a="input",
        root="rank",
        out="result",
        timeout="seconds",
    ),
    "Communicator.broadcast in place": communicator("broadcast", lambda t: {"a": t.floats.copy()}, a="room"),
    "Communicator.all_reduce": communicator(
        "all_reduce",
        lambda t: {"a": t.floats, "op": "sum", "out": np.empty_like(t.floats)},
        a="input",
        op="option",
        out="result",
        timeout="seconds",
    ),
    "Communicator.reduce_scatter": communicator(
        "reduce_scatter",
        lambda t: {"a": t.floats, "op": "sum", "out": np.empty(3, "f4")},
        a="input",
        op="option",
        out="result",
        timeout="seconds",
    ),
    "Communicator.reduce_scatter_v": communicator(
        "reduce_scatter_v",
        lambda t: {"a": t.floats, "counts": [1] * t.comm.size, "op": "sum", "out": np.empty((1, 3), "f4")},
        a="input",
        counts="counts",
        op="option",
        out="result",
        timeout="seconds",
    ),
    "Communicator.send": communicator(
        "send",
        lambda t: {"array": t.floats, "dst": t.comm.rank, "tag": 1},
        array="message",
        dst="rank",
        tag="tag",
        timeout="seconds",
    ),
    "Communicator.isend": communicator(
        "isend",
        lambda t: {"array": t.floats, "dst": t.comm.rank, "tag": 1},
        array="message",
        dst="rank",
        tag="tag",
    ),
    "Communicator.recv": communicator(
        "recv",
        lambda t: arrived(t, 2, array=np.empty_like(t.floats)),
        array="room",
        src="rank",
        tag="tag",
        timeout="seconds",
    ),
    "Communicator.irecv": communicator(
        "irecv", lambda t: arrived(t, 3, array=np.empty_like(t.floats)), array="room", src="rank", tag="tag"
    ),
    "Communicator.sendrecv": communicator(
        "sendrecv",
        lambda t: {
            "array": t.floats,
            "dst": t.comm.rank,
            "into": np.empty_like(t.floats),
            "src": t.comm.rank,
            "send_tag": 4,
            "recv_tag": 4,
        },
        array="message",
        dst="rank",
        into="room",
        src="rank",
        send_tag="tag",
        recv_tag="tag",
        timeout="seconds",
    ),
    "Communicator.probe": communicator(
        "probe", lambda t: arrived(t, 7), src="rank", tag="tag", timeout="seconds"
    ),
    "Communicator.iprobe": communicator("iprobe", lambda t: arrived(t, 7), src="rank", tag="tag"),
    "Communicator.recv_view": communicator(
        "recv_view",
        lambda t: arrived(t, 8, dtype="f4", shape=(t.comm.size, 3)),
        src="rank",
        tag="tag",
        dtype="dtype",
        shape="shape",
        timeout="seconds",
    ),
    "Communicator.wait_stats": communicator("wait_stats"),
    "Communicator.reset_wait_stats": communicator("reset_wait_stats"),
    "Communicator.abort": Function(
        lambda t: t.comm.split(0).abort, lambda t: {"reason": "why"}, {"reason": "text"}
    ),
    "Communicator.close": Function(lambda t: t.comm.split(0).close),
    "Request.wait": Function(lambda t: t.waiting().wait, kinds={"timeout": "seconds"}),
    "Request.test": Function(lambda t: t.waiting().test),
    "Request.cancel": Function(lambda t: t.waiting().cancel),
    "View.release": Function(lambda t: t.view().release),
    "ExpertParallel": Function(
        lambda t: xccl.ExpertParallel,
        lambda t: {
            "comm": t.comm,
            "num_experts": 2,
            "hidden": 4,
            "max_tokens": 3,
            "topk": 1,
            "dtype": "float32",
        },
        {
            "comm": "object",
            "num_experts": "size",
            "hidden": "size",
            "max_tokens": "size",
            "topk": "size",
            "dtype": "row dtype",
            "dispatch_quant": "option",
            "combine_quant": "option",
            "combine_dtype": "row dtype",
            "layout": "option",
            "results": "size",
            "placement": "placement",
            "shared_experts": "experts",
            "timeout": "seconds",
        },
    ),
    "ExpertParallel.set_placement": Function(
        lambda t: t.ep.set_placement,
        lambda t: {"placement": t.ep.placement},
        {"placement": "placement", "timeout": "seconds"},
    ),
    "ExpertParallel.expert_load": Function(lambda t: t.ep.expert_load, lambda t: {"reset": False}),
    "ExpertParallel.input_buffer": Function(
        lambda t: t.ep.input_buffer, lambda t: {"n": 2}, {"n": "number", "timeout": "seconds"}
    ),
    "ExpertParallel.dispatch": Function(
        lambda t: t.ep.dispatch,
        lambda t: {"x": t.x, "topk_idx": t.idx, "topk_weights": t.weights},
        {"x": "rows", "topk_idx": "rows", "topk_weights": "rows", "timeout": "seconds"},
    ),
    "ExpertParallel.dispatch again": Function(
        lambda t: t.ep.dispatch,
        lambda t: {"x": t.x, "routing": t.d.routing},
        {"x": "rows", "routing": "object but nothing", "timeout": "seconds"},
    ),
    "ExpertParallel.combine": Function(
        lambda t: t.ep.combine,
        lambda t: {"rows": np.asarray(t.d.x), "d": t.d, "weights": t.weights, "out": np.empty_like(t.x)},
        {"rows": "rows", "d": "object", "weights": "rows", "out": "result", "timeout": "seconds"},
    ),
    "ExpertParallel.dispatch_async": Function(
        lambda t: waited(t.ep.dispatch_async),
        lambda t: {"x": t.x, "topk_idx": t.idx, "topk_weights": t.weights},
        {"x": "rows", "topk_idx": "rows", "topk_weights": "rows", "timeout": "seconds"},
    ),
    "ExpertParallel.combine_async": Function(
        lambda t: waited(t.ep.combine_async),
        lambda t: {"rows": np.asarray(t.d.x), "d": t.d, "weights": t.weights, "out": np.empty_like(t.x)},
        {"rows": "rows", "d": "object", "weights": "rows", "out": "result", "timeout": "seconds"},
    ),
    "ExpertParallel.close": Function(lambda t: xccl.ExpertParallel(t.comm, 2, 4, 3, 1).close),
    "ExpertParallel.plan": Function(
        lambda t: xccl.ExpertParallel.plan,
        lambda t: {"size": 1, "num_experts": 2, "hidden": 4, "max_tokens": 3, "topk": 1, "dtype": "float32"},
        {
            "size": "size",
            "num_experts": "size",
            "hidden": "size",
            "max_tokens": "size",
            "topk": "size",
            "dtype": "row dtype",
            "results": "size",
            "layout": "option",
            "dispatch_quant": "option",
            "combine_quant": "option",
            "placement": "placement",
            "shared_experts": "experts",
            "rank": "rank",
            "tokens": "rank",
            "rows": "rank",
        },
    ),
    "Dispatched.expert": Function(lambda t: t.d.expert, lambda t: {"i": 0}, {"i": "rank"}),
    "Dispatched.rows_of": Function(lambda t: t.d.rows_of, lambda t: {"i": 0}, {"i": "rank"}),
    "Dispatched.output_buffer": Function(lambda t: t.d.output_buffer, kinds={"timeout": "seconds"}),
    "Dispatched.release": Function(lambda t: t.ep.dispatch(t.x, routing=t.d.routing).release),
    "init": Function(
        lambda t: lambda **given: xccl.init(**given).close(),
        lambda t: {"rank": 0, "size": 1, "job": f"misuse-{os.getpid()}", "provider": "local"},
        {
            "rank": "rank",
            "size": "size",
            "job": "name",
            "timeout": "seconds",
            "provider": "option",
            "startup_timeout": "seconds",
            "progress_thread": "flag",
        },
    ),
    "spawn": Function(
        lambda t: xccl.spawn,
        lambda t: {"fn": lambda comm: 3, "nprocs": 1, "provider": "local"},
        {"fn": "object", "nprocs": "size", "args": "sequence", "provider": "option", "timeout": "seconds"},
    ),
    "eplb.migrate": Function(
        lambda t: lambda **given: eplb.migrate(t.comm, **given),
        lambda t: {"weights": t.moving, "moves": [eplb.Move(0, 0, 0, 0, 1)], "step_bytes": 64},
        {"weights": "room", "moves": "moves", "step_bytes": "size", "timeout": "seconds"},
    ),
    "eplb.rebalance": Function(
        lambda t: eplb.rebalance,
        lambda t: {"load": [3, 1], "current": [[0, 1], [-1]], "budget": 1, "dead_ranks": []},
        {"load": "load", "current": "placement", "budget": "number or nothing", "dead_ranks": "ranks"},
    ),
    "eplb.rebalance of slots": Function(
        lambda t: eplb.rebalance,
        lambda t: {"load": [3, 1], "slots": [1, 1]},
        {"load": "load", "slots": "slots"},
    ),
    "eplb.rank_loads": Function(
        lambda t: eplb.rank_loads,
        lambda t: {"load": [3, 1], "placement": [[0, 1]]},
        {"load": "load", "placement": "placement"},
    ),
    "eplb.rebalance_experts": Function(
        lambda t: eplb.rebalance_experts,
        lambda t: {"weight": [[3, 1]], "num_replicas": 2, "num_groups": 1, "num_nodes": 1, "num_gpus": 1},
        {
            "weight": "load",
            "num_replicas": "size",
            "num_groups": "size",
            "num_nodes": "size",
            "num_gpus": "size",
        },
    ),
}
