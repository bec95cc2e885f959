"""The models of the protocols stand for functions that are there, and their runner notices what is wrong.

What spin finds in all of them takes a minute: `make model`. Here it searches one model and one variant.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from models import run as model_runner

ROOT = Path(__file__).resolve().parents[1]
MODELS = model_runner.models()


def test_there_is_a_model_of_each_protocol():
    assert {"ring", "doorbell", "slots", "withdrawal"} <= {model.name for model in MODELS}
    assert all(len(model.broken) >= 2 for model in MODELS)


@pytest.mark.skipif(bool(model_runner.missing_tools()), reason=model_runner.missing_tools() or "-")
def test_spin_finds_nothing_in_a_model_and_a_fault_in_a_variant():
    cases = model_runner.select(["ring"])
    chosen = [cases[0], next(case for case in cases if case.variant)]
    for case, outcome in model_runner.checked(chosen):
        assert not model_runner.surprise(case, outcome)
        assert outcome.states > 100 or outcome.steps


def defined(function: str, source: str) -> bool:
    return bool(re.search(rf"[\w>&*] (?:\w+::)?{function}\([^;{{}}]*\)[^;{{}}]*{{", source))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_model_names_functions_that_exist(model):
    for file, functions in model.stands_for.items():
        source = (ROOT / file).read_text()
        assert not [function for function in functions if not defined(function, source)], file


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_variant_changes_the_model(model):
    text = model.path.read_text()
    used = set(re.findall(r"^#ifn?def (\w+)$", text, re.MULTILINE))
    assert set(model.broken) <= used


def test_without_spin_it_says_what_to_install():
    script = [sys.executable, model_runner.__file__]
    done = subprocess.run(script, env={"PATH": "/nonexistent"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "apt-get install spin" in done.stderr


def test_a_variant_that_spin_does_not_fault_is_a_failure():
    # Without a use for the name the model is as it stands: right.
    model = next(model for model in MODELS if model.name == "withdrawal")
    case = model_runner.Case(model, "", "")
    harmless = model_runner.Case(
        model_runner.Model(model.path, model.stands_for, [], {"HARMLESS": "nothing is wrong"}), "HARMLESS", ""
    )
    nothing = model_runner.Outcome()
    fault = model_runner.Outcome(fault="invalid end state", steps=["a step"])
    assert "spin found nothing" in model_runner.surprise(harmless, nothing)
    assert "a step" in model_runner.surprise(case, fault)
    assert "no run comes to" in model_runner.surprise(
        case, model_runner.Outcome(never_reached=["ring.pml:1"])
    )
    assert not model_runner.surprise(harmless, fault)
    assert not model_runner.surprise(case, nothing)
