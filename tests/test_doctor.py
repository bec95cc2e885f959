"""`python -m xccl doctor`, `demo` and the command line around them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import xccl
from xccl.cli import demo, doctor, facts, main


@pytest.fixture
def command(tmp_path):
    """Runs `python -m xccl ...` away from the source tree."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "xccl", *words)
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    return run


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """As if nobody had launched this process, whoever runs the tests."""
    for name in ("RANK", "WORLD_SIZE", "XCCL_RANK", "XCCL_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_the_report_explains_the_machine_and_what_xccl_will_use(command):
    result = command("doctor", "-n", "8")
    assert result.returncode == 0, result.stdout + result.stderr
    for subject in (
        *SECTIONS,
        "can still be taken",
        "limited by",
        "huge pages",
        "with 8 ranks",
        "XCCL_TIMEOUT",
    ):
        assert subject in result.stdout
    assert result.stdout.endswith("XCCL can run here.\n")


SECTIONS = ["software", "machine", "memory", "cores", "launcher", "providers", "waiting", "settings"]


def test_json_has_the_same_sections(command):
    report = json.loads(command("doctor", "--json").stdout)
    assert list(report) == [*SECTIONS, "problems", "advice"]
    assert report["problems"] == []
    assert report["software"]["xccl"] == xccl.__version__
    assert report["providers"]["posix_shm"] == "available"


def test_a_contradictory_launcher_is_a_problem(monkeypatch, capsys):
    monkeypatch.setenv("XCCL_RANK", "0")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem: XCCL_RANK is set but XCCL_SIZE is not" in out
    assert out.endswith("XCCL cannot run here as things are.\n")


def test_a_senseless_setting_is_a_problem_that_hides_nothing_else(monkeypatch):
    monkeypatch.setenv("XCCL_SPIN_US", "soon")
    report = doctor.examine(2)
    assert len(report["problems"]) == 1
    assert "XCCL_SPIN_US" in report["problems"][0]
    assert report["memory"]["limited by"]


def test_a_launcher_is_seen(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert facts.launcher()["rank"] == "1 of 2"


def test_the_demo_checks_itself(command):
    result = command("demo", "--seed", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("xccl demo: OK")


@pytest.mark.parametrize("wrong_rank", range(demo.RANKS))
def test_the_demo_sees_a_wrong_bit(monkeypatch, capsys, wrong_rank):
    def play_badly(fn, nprocs, args):
        results = [
            (demo.expected_rows(args[0])[:, rank], demo.truth(demo.problem(args[0], rank)))
            for rank in range(nprocs)
        ]
        counts, y = results[wrong_rank]
        if y.size:
            y.view("uint32")[-1, -1] ^= 1
        else:
            counts[0] += 1
        return results

    monkeypatch.setattr(xccl, "spawn", play_badly)
    assert main(["demo"]) == 1
    assert "xccl demo: FAILED" in capsys.readouterr().out.splitlines()[-1]


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xccl {xccl.__version__}\n"


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "doctor", "demo"))


def test_output_into_a_closed_pipe_ends_without_a_word(tmp_path):
    script = f"{sys.executable} -m xccl doctor --json | :"
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
