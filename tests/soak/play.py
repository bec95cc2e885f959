"""What one rank does in a round: the steps of its schedule, and after a death what survivors do.

Runs in a process that plays many rounds (ranks.py). Not here: who kills (rounds.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from growth import Taken
from ranks import Part, mark

import xccl
from soak.groups import shrink
from soak.operations import OPERATIONS
from soak.scene import Scene, expect
from soak.schedule import Schedule, Step, schedule

TIMEOUT_S = 60.0  # of calls that are not meant to run into theirs


def play(part: Part, seed: int, folder: Path) -> tuple[dict[str, int], Taken]:
    """A round, as rank part.rank. Returns how often each operation was called, and what the process has afterwards."""
    counts = _play(part, schedule(seed), folder)
    return counts, Taken.now()


def _play(part: Part, plan: Schedule, folder: Path) -> dict[str, int]:
    with _on_cores(plan.cores):
        comm = part.init(timeout=TIMEOUT_S)
        scene = Scene(comm, plan.seed, range(plan.size))
        try:
            for step in plan.steps:
                _take(scene, step, folder)
            for array, contents in scene.kept:
                scene.check(array, contents, "an array that was kept")
        except BaseException as error:
            scene.comm.abort(f"{type(error).__name__}: {error}")
            raise
        finally:
            scene.comm.close()
        return dict(scene.counts)


@contextlib.contextmanager
def _on_cores(cores: int | None) -> Iterator[None]:
    """More ranks than cores, on any machine."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _take(scene: Scene, step: Step, folder: Path) -> None:
    job_rank = scene.job_rank
    scene.begin(step.operation, step.number)
    try:
        if step.victim is None:
            OPERATIONS[step.operation](scene)
        elif step.victim == job_rank:
            scene.comm.barrier()  # the others have done with what was before
            mark(folder, f"step-{step.number}")
            OPERATIONS[step.operation](scene)
            time.sleep(3600)  # until it is killed
        else:
            _survive(scene, step)
    except Exception as error:
        raise StepFailed(f"rank {job_rank}, {step}: {type(error).__name__}: {error}") from error


class StepFailed(Exception):
    """Names the step in which something was wrong."""


def _survive(scene: Scene, step: Step) -> None:
    """The step either ends well or with the death, which is named; the next calls tell of it in any case."""
    assert step.victim is not None
    with contextlib.suppress(xccl.PeerLost):
        scene.comm.barrier()
        OPERATIONS[step.operation](scene)
    error = expect(xccl.PeerLost, _barriers, scene.comm)
    assert error.ranks == [step.victim], f"{error!r} names {error.ranks}"
    shrink(scene, without=[step.victim])


def _barriers(comm: xccl.Communicator) -> Any:
    while True:
        comm.barrier()
