"""How long dispatch and combine take beside one copy of the same bytes: `make bench`.

The benchmark's process is rank 0; the others follow it round by round. Every round has fresh routing, and its result
is checked after the clock has stopped. Not here: other libraries beside ours, which is the next step of the project.
"""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
import xccl
from pytest_benchmark.fixture import BenchmarkFixture

HIDDEN, EXPERTS, TOPK = 7168, 256, 8  # DeepSeek-V3's
ROUNDS = 30


class Work:
    """One rank's part: tokens whose experts change nothing, so that y = x * sum(weights)."""

    def __init__(self, rank: int, size: int, job: str, tokens: int) -> None:
        self.comm = xccl.init(rank=rank, size=size, job=job, timeout=60)
        self.ep = xccl.ExpertParallel(self.comm, EXPERTS, HIDDEN, tokens, TOPK)
        self._rng = np.random.default_rng(rank)
        self._x = self._rng.integers(-9, 9, (tokens, HIDDEN)).astype(ml_dtypes.bfloat16)
        self._weights = np.full((tokens, TOPK), 0.125, np.float32)

    def next_round(self, going_on: bool) -> bool:
        """New routing, then all ranks start together; False when rank 0 has had enough."""
        scores = self._rng.random((len(self._x), EXPERTS), dtype=np.float32)
        self._idx = np.argpartition(scores, TOPK, axis=1)[:, :TOPK]
        self._tokens = self.ep.input_buffer(len(self._x))
        self._tokens[:] = self._x
        return bool(self.comm.all_gather(np.array([going_on]))[0, 0])

    def dispatch(self) -> xccl.Dispatched:
        self.d = self.ep.dispatch(self._tokens, self._idx, self._weights)
        return self.d

    def combine(self) -> np.ndarray:
        return self.ep.combine(self.d.x, self.d)

    def check(self, y: np.ndarray) -> None:
        assert y.tobytes() == self._x.tobytes()

    def release(self) -> None:
        self.d.release()


def follow(rank: int, size: int, job: str, tokens: int) -> None:
    """Every rank but 0."""
    work = Work(rank, size, job, tokens)
    while work.next_round(True):
        work.dispatch()
        work.check(work.combine())
        work.release()
    work.comm.close()


@dataclass
class Group:
    """Rank 0's work and a source and target for the floor, as large as its d.x."""

    work: Work
    name: str


@pytest.fixture(params=[(2, 128), (2, 4096), (8, 128)], ids=["decode-2", "prefill-2", "decode-8"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    size, tokens = request.param
    job = f"bench-{uuid.uuid4()}"
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=follow, args=(rank, size, job, tokens)) for rank in range(1, size)]
    for process in others:
        process.start()
    work = Work(0, size, job, tokens)
    yield Group(work, f"{size} ranks, {tokens} tokens each")
    work.next_round(False)
    work.comm.close()
    for process in others:
        process.join(60)
        assert process.exitcode == 0


def test_dispatch(benchmark: BenchmarkFixture, group: Group) -> None:
    work = group.work
    benchmark.group = group.name

    def finish(_: xccl.Dispatched) -> None:
        work.check(work.combine())
        work.release()

    run_rounds(benchmark, lambda: work.next_round(True), work.dispatch, finish)


def test_combine(benchmark: BenchmarkFixture, group: Group) -> None:
    work = group.work
    benchmark.group = group.name

    def prepare() -> None:
        work.next_round(True)
        work.dispatch()

    def finish(y: np.ndarray) -> None:
        work.check(y)
        work.release()

    run_rounds(benchmark, prepare, work.combine, finish)


def test_one_copy_of_the_rows(benchmark: BenchmarkFixture, group: Group) -> None:
    """The floor: what d.x holds, copied once from memory of the same size, by rank 0 alone."""
    work = group.work
    benchmark.group = group.name
    work.next_round(True)
    d = work.dispatch()
    source, target = np.ones_like(np.asarray(d.x)), np.zeros_like(np.asarray(d.x))
    work.check(work.combine())
    work.release()
    run_rounds(benchmark, lambda: None, lambda: np.copyto(target, source), lambda _: None)
    assert target.tobytes() == source.tobytes()


def run_rounds(benchmark: BenchmarkFixture, prepare, timed, finish) -> None:  # type: ignore[no-untyped-def]
    """Times `timed` only; `finish` gets what it returned, before the next round."""
    result = []

    def set_up() -> None:
        if result:
            finish(result.pop())
        prepare()

    benchmark.pedantic(lambda: result.append(timed()), setup=set_up, rounds=ROUNDS)
    finish(result.pop())
