"""`python -m xccl bench`, and that the benchmarks in bench/ still run: once, with tiny cases and without peers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xccl
from xccl.cli import bench, bench_ranks, main

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--hidden", "64", "--experts", "8", "--topk", "4", "--seconds", "0.01")


def run(*words: str, cwd: Path, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def test_the_short_version_prints_a_table(tmp_path):
    result = run("xccl", "bench", "--tokens", "3", "5", *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for what in (
        "barrier",
        "message of 64 KiB, one way",
        "dispatch, 3 tokens a rank",
        "combine, 5 tokens a rank",
        "plain copy",
    ):
        assert what in result.stdout
    assert result.stdout.endswith("All results were right.\n")
    assert result.stderr == ""


def test_json_has_seconds(tmp_path):
    result = run("xccl", "bench", "--json", "-n", "3", "--tokens", "2", *TINY, cwd=tmp_path)
    told = json.loads(result.stdout)
    assert told["machine"]["ranks"] == 3
    dispatch = next(line for line in told["lines"] if line["what"].startswith("dispatch"))
    assert 0 < dispatch["fastest"] <= dispatch["median"] < 10
    assert dispatch["copy"] > 0


def test_a_wrong_result_is_a_failure(monkeypatch, capsys):
    def spawn_threads(fn, nprocs, args):
        return spawn(fn, nprocs, args, provider="local")

    spawn = xccl.spawn
    monkeypatch.setattr(xccl, "spawn", spawn_threads)
    monkeypatch.setattr(bench_ranks, "halves", lambda count: np.ones(count, np.float32))
    assert main(["bench", "--tokens", "2", *TINY]) == 1
    assert "combine did not return the tokens" in capsys.readouterr().err


def test_more_experts_for_a_token_than_there_are(capsys):
    assert main(["bench", "--topk", "9", "--experts", "8"]) == 2
    assert "--topk 9 is more than --experts 8" in capsys.readouterr().err


def test_a_round_lasts_from_the_first_start_to_the_last_end():
    spans = [[(0, 10, 1), (100, 150, 5)], [(5, 20, 1), (90, 120, 5)]]
    assert bench.rounds(spans) == pytest.approx([20e-9, 12e-9])


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5e-8, "15 ns"), (9.994e-4, "999 us"), (0.0123, "12.3 ms"), (2, "2 s")]
)
def test_durations_have_three_figures(seconds, text):
    assert bench.duration(seconds) == text


@pytest.mark.timeout(400)
def test_every_benchmark_runs(tmp_path):
    options = ("--smoke", "--results", str(tmp_path / "results"), "-o", "faulthandler_timeout=0")
    where = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-p", "no:cacheprovider")
    result = run(
        "pytest", *where, "--benchmark-enable", *options, str(ROOT / "bench"), cwd=tmp_path, timeout=390
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr
    questions = {path.stem.removeprefix("test_") for path in (ROOT / "bench").glob("test_*.py")}
    for question in questions:
        found = json.loads((tmp_path / "results" / f"{question}.json").read_text())
        # Not medians: on a restless machine all of so few samples may lie between two regimes.
        for case in found["cases"]:
            assert case["samples"], (question, case["case"], case["absent"])
            assert all(seconds > 0 for _, _, _, seconds, *_ in case["samples"]), question
        assert (tmp_path / "results" / f"{question}.md").exists()
