"""A short round of the long run (tests/soak/), and that it finds what is wrong and can be played again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from soak.operations import DEADLY, OPERATIONS
from soak.schedule import schedule

ROUNDS = 30


def soak(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs it as `make soak` does."""
    command = [sys.executable, "-m", "soak", *map(str, arguments)]
    folder = Path(__file__).parent
    return subprocess.run(
        command, cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=110
    )


def test_some_rounds_of_everything_are_right_and_leave_nothing():
    done = soak("--seed", 1, "--rounds", ROUNDS)
    assert done.returncode == 0, done.stdout + done.stderr
    plans = [schedule(1 + number) for number in range(ROUNDS)]
    kills = sum(len(plan.victims) for plan in plans)
    assert kills > 10
    assert f"{ROUNDS} rounds" in done.stdout
    assert f"{kills} kills" in done.stdout
    assert set(OPERATIONS) <= set(re.findall(r"^  (\w+) +[1-9]\d*$", done.stdout, re.MULTILINE))
    assert "all results right, nothing left behind" in done.stdout


def test_a_seed_makes_the_same_round_in_every_process():
    first, second = (soak("--seed", 5, "--plan", PYTHONHASHSEED=hash_seed).stdout for hash_seed in ("1", "2"))
    assert first == second == f"{schedule(5)}\n"
    assert schedule(5) != schedule(6)


def test_rounds_vary():
    plans = [schedule(seed) for seed in range(200)]
    assert {plan.size for plan in plans} == {1, 2, 3, 4, 5, 6}
    assert {plan.environ["XCCL_DIRECT"] for plan in plans} == {"0", "1"}
    assert {step.operation for plan in plans for step in plan.steps} == set(OPERATIONS)
    assert {step.operation for plan in plans for step in plan.steps if step.victim is not None} == set(DEADLY)
    assert all(len(plan.victims) < plan.size for plan in plans)


def test_a_wrong_result_is_found_and_its_seed_plays_it_again():
    spoilt = {"SOAK_SPOIL": "all_reduce"}
    found = soak("--seed", 1, "--rounds", ROUNDS, **spoilt)
    assert found.returncode == 1, found.stdout
    assert "wrong result" in found.stdout
    [seed] = re.findall(r"^replay with: make soak SEED=(\d+)$", found.stdout, re.MULTILINE)
    # The step is an all_reduce, or a split in whose groups there is one.
    wrong = r"(step \d+: [^:]+): AssertionError: wrong result"
    steps = set(re.findall(wrong, found.stdout))
    assert steps, found.stdout
    again = soak("--seed", seed, **spoilt)
    assert again.returncode == 1
    assert steps & set(re.findall(wrong, again.stdout))
    assert soak("--seed", seed).returncode == 0
