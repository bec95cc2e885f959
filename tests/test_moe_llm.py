"""The demo's stages with a tiny random model; and the demo itself, with two short prompts, as `make demo` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("moe_llm_program.py")
MAIN = Path(__file__).resolve().parents[1] / "examples" / "moe_llm" / "main.py"


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, cwd=folder, env=environ, capture_output=True, text=True, timeout=110)


def test_the_ranks_agree_with_one_process(tmp_path):
    # Also 1, 2 and 4. 5 prompts of different lengths: at 7 ranks some have no token at all, at 4 most end early.
    done = run(tmp_path, PROGRAM, "serve", 7, "none", "none", "colocated")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "5 prompts" in done.stdout
    assert "hottest expert" in done.stdout


def test_attention_and_experts_on_different_ranks_give_the_bits_of_ranks_with_both(tmp_path):
    done = run(tmp_path, PROGRAM, "serve", 4, "none", "none", "1:direct")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bit for bit those of the colocated form: 0 of") == 2
    assert "records and fan-out as the cost model says: on 4 of 4 ranks" in done.stdout
    assert "fan-out of attention ranks, direct: 3, expected 3" in done.stdout


def test_so_they_do_by_trampoline_and_with_quantised_rows(tmp_path):
    done = run(tmp_path, PROGRAM, "serve", 5, "none", "int8", "3:trampoline")
    assert done.returncode == 0, done.stdout + done.stderr
    # With float32 rows to all experts and to some, with int8 rows to some.
    assert done.stdout.count("bit for bit those of the colocated form: 0 of") == 3
    assert "fan-out of attention ranks, trampoline: 1, expected 1" in done.stdout
    assert "rows of experts as int8" in done.stdout


def test_experts_that_move_while_the_model_runs_leave_its_bits_also_with_quantised_rows(tmp_path):
    done = run(tmp_path, PROGRAM, "serve", 3, "none", "fp8_e4m3", "rebalance")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bit for bit those of the colocated form: 0 of") == 2
    assert "hottest rank   " in done.stdout
    assert ", as fp8_e4m3: 0." in done.stdout
    assert "5 answers are what float32 rows write" in done.stdout


def test_one_broken_expert_is_noticed(tmp_path):
    done = run(tmp_path, PROGRAM, "serve", 2, "1:3", "none", "1:direct")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert any("against the dense model" in line for line in failed)
    assert any("against the same experts" in line for line in failed)


def test_perplexity_is_what_its_definition_says(tmp_path):
    done = run(tmp_path, PROGRAM, "perplexity")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ranks", "0"], "--ranks and --max-tokens must be at least 1"),
        (["--topk", "33"], "--topk 33 must be between 1 and --experts 32"),
        (["--quant", "int4"], "argument --quant: invalid choice: 'int4'"),
        (["--break-expert", "3"], "expected LAYER:EXPERT"),
        (["--disaggregated", "3"], "expected A:E"),
        (["--disaggregated", "0:3"], "at least one rank of each kind"),
        (["--disaggregated", "3:5", "--ranks", "4"], "says already that there are 8"),
        (["--trampoline", "on"], "give it with --disaggregated"),
        (["--rebalance", "--disaggregated", "3:5"], "the placement of DisaggregatedExperts is fixed"),
        (["--rebalance", "--ranks", "1"], "needs at least 2 ranks"),
        (["--rebalance", "--topk", "32"], "all have the same load"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(tmp_path, options, says):
    done = run(tmp_path, MAIN, *options)
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.timeout(600)
def test_the_real_model_writes_text_and_passes_its_checks(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("6 | What is the capital of France?\n3 | Say hello.\n")
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    # The prepared model is kept where `make demo` keeps it.
    line = [sys.executable, str(MAIN), "--ranks", "3", "--prompts", str(prompts)]
    done = subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("demo: OK 3 ranks")
    assert "10 of 10 checks passed" in done.stdout
