"""The mutants of `make mutants` still fit the sources. That each is caught takes minutes: that command shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import run as mutant_runner
from mutants.table import MUTANTS, ModelVariant

ROOT = Path(__file__).resolve().parents[1]
NATIVE_TESTS = {path.stem for path in (ROOT / "tests" / "native").glob("*.cpp")}


def test_there_are_mutants_of_every_layer_that_has_a_protocol():
    assert len(MUTANTS) >= 10
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    layers = {mutant.file.split("/")[1] for mutant in MUTANTS}
    assert {"sync", "p2p", "collective", "group", "moe", "kernels"} <= layers


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_its_catcher_exists(mutant):
    source = (ROOT / mutant.file).read_text()
    assert mutant_runner.mutated(mutant, source) != source
    if isinstance(mutant.caught_by, ModelVariant):
        assert not mutant_runner.stands_for(mutant, mutant.caught_by)
    else:
        assert mutant.caught_by.name in NATIVE_TESTS


def test_a_mutant_whose_text_is_gone_says_so():
    with pytest.raises(mutant_runner.CannotTell, match="0 times, expected once"):
        mutant_runner.mutated(MUTANTS[0], "int main() {}")
