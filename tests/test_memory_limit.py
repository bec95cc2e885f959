"""A limit of memory, as containers have one: what would not fit is refused, and nobody is killed for it.

In a memory cgroup of its own, which only root can make; skipped elsewhere. Limits of address space, open files and
file size are in test_settings.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

MIB = 1 << 20
LIMIT = 256 * MIB


def memory_cgroup():
    """The folder below which cgroups with a memory limit can be made, and the name of the limit there."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in own:  # version 1
        return Path("/sys/fs/cgroup/memory") / own["memory"].strip("/"), "memory.limit_in_bytes"
    return Path("/sys/fs/cgroup") / own.get("", "/").strip("/"), "memory.max"


@pytest.fixture
def limited():
    """What a process does to come under the limit."""
    parent, limit = memory_cgroup()
    folder = parent / f"xccl-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT))
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
    folder.rmdir()  # fails if a process were left in it


def run(program, limited):
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limited)


def test_what_exceeds_the_limit_is_refused_and_names_it(limited):
    done = run(
        """
        import numpy as np, xccl
        comm = xccl.init()
        try:
            comm.empty(512 << 20, "uint8")
        except xccl.OutOfMemory as error:
            print("array:", error)
        kept = comm.empty(32 << 20, "uint8")
        kept.fill(7)
        ep = xccl.ExpertParallel(comm, 2, 1 << 16, 4096, 2, "float32")  # at the worst 4 GiB of rows: address space
        x = np.ones((128, 1 << 16), np.float32)  # 32 MiB, and twice as much in rows
        with ep.dispatch(x, np.zeros((128, 2), np.int64), np.ones((128, 2), np.float32)) as d:
            print("right:", bool((d.x == 1).all()) and d.num_rows == 256)
        ep.close()
        print("kept:", bool((kept == 7).all()))
        """,
        limited,
    )
    assert done.returncode == 0, done.stderr
    assert "array: " in done.stdout
    assert "cgroup limit" in done.stdout
    assert "right: True" in done.stdout
    assert "kept: True" in done.stdout


def test_rows_that_exceed_the_limit_are_refused_and_the_rank_lives(limited):
    done = run(
        """
        import numpy as np, xccl
        comm = xccl.init()
        ep = xccl.ExpertParallel(comm, 2, 1 << 16, 512, 8, "float32")
        x, weights = np.ones((64, 1 << 16), np.float32), np.ones((64, 8), np.float32)  # 16 MiB, 128 MiB of rows
        try:
            ep.dispatch(np.tile(x, (4, 1)), np.zeros((256, 8), np.int64), np.ones((256, 8), np.float32))
        except xccl.OutOfMemory as error:
            print("rows:", error)
        again = comm.shrink()  # what fails after others may count on it ends the communicator
        with xccl.ExpertParallel(again, 2, 64, 4, 1, "float32") as small:
            x = np.ones((4, 64), np.float32)
            with small.dispatch(x, np.zeros((4, 1), np.int64), np.ones((4, 1), np.float32)) as d:
                print("right:", bool((d.x == 1).all()))
        """,
        limited,
    )
    assert done.returncode == 0, done.stderr
    assert "rows: " in done.stdout
    assert "cgroup limit" in done.stdout
    assert "right: True" in done.stdout
