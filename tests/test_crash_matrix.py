"""A part of the crash matrix, and that it has all steps. `make crash-matrix` runs the whole."""

from __future__ import annotations

import re

import crash_matrix
import pytest


@pytest.fixture(scope="module")
def program():
    if not crash_matrix.PROGRAM.exists():
        pytest.skip("the native tests are not built: make native")
    return crash_matrix.PROGRAM


def test_the_matrix_and_its_document_have_every_step_of_the_sources():
    steps = crash_matrix.steps_in_sources()
    assert len(steps) > 50
    assert {row.step for row in crash_matrix.ROWS} == steps
    assert crash_matrix.steps_in_document() == steps


def test_the_document_is_what_the_matrix_expects_and_tells_of_no_failure():
    # As written when all cases went well; a row that has changed since must be run and written again.
    assert crash_matrix.DOCUMENT.read_text() == crash_matrix.document(
        {case: "" for case in crash_matrix.all_cases()}
    )


def test_every_scenario_of_the_ranks_is_in_the_matrix():
    source = (crash_matrix.ROOT / "tests" / "native" / "crash_rank.cpp").read_text()
    table = source[source.index("scenarios = {{") :]
    named = set(re.findall(r'\{"([\w ]+)", \w+\}', table[: table.index("};")]))
    assert named == {row.scenario for row in crash_matrix.ROWS} | {"busy"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", crash_matrix.sample(), ids=str)
def test_the_others_experience_what_is_documented(program, case):
    assert crash_matrix.run_case(program, case) == ""


@pytest.mark.timeout(120)
def test_a_step_that_is_not_reached_fails(program):
    row = crash_matrix.Row("p2p.keeping", "inlined", 1)
    assert crash_matrix.run_case(program, crash_matrix.Case(row, "error")) == "the step was not reached"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"kill": ("completed",)}, "says PeerLost"),
        ({"victim": 0, "kill": ("PeerLost",)}, "the step was not reached"),
    ],
)
def test_another_outcome_than_the_documented_one_fails(program, change, wrong):
    row = crash_matrix.Row(**({"step": "p2p.taken", "scenario": "streamed", "victim": 1} | change))
    assert wrong in crash_matrix.run_case(program, crash_matrix.Case(row, "kill"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_are_killed_from_outside_are_named(program, size):
    assert len(crash_matrix.detection_ms(program, size, seed=5)) == size - 1
