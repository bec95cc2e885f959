"""The programs of examples/python, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "python"
SAYS = {
    "ping_pong.py": (2, "1048576 bytes from comm.empty"),
    "all_to_all.py": (4, "4 ranks exchanged 24 rows of their own choice"),
    "overlap.py": (2, "2 micro-batches went through 6 layers on 2 ranks and are right"),
    "disaggregated.py": (8, "trampoline: 3 layers are right; attention writes to 1 ranks"),
    "kv_cache_transfer.py": (2, "6 prompts, 8 layers each: 1.5 MiB of cache arrived and are right"),
}


def test_every_example_is_run():
    assert {path.name for path in FOLDER.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_the_example_runs_and_says_what_it_found(name, tmp_path):
    size, text = SAYS[name]
    command = [sys.executable, "-m", "xccl", "run", "-n", str(size), str(FOLDER / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_the_table_of_records_is_printed_for_any_numbers_of_ranks(tmp_path):
    # Each rank of the program holds what it has counted to what the model says.
    command = [sys.executable, str(FOLDER / "disaggregated.py"), "7:2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert rows == [
        ["attention", "direct", "4", "4", "2"],
        ["attention", "trampoline", "1", "1", "1"],
        ["expert", "direct", "14", "14", "7"],
        ["expert", "trampoline", "6", "6", "5"],
    ]
