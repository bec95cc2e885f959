"""docs/reliability.md names tests for each promise: they exist, and no promise goes without."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()
PROMISES = DOCUMENT[DOCUMENT.index("## The promises") : DOCUMENT.index("## The rules of failure")]
ROWS = [line for line in PROMISES.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
NAMED = sorted(set(re.findall(r"`([\w/]+::[^`]+|make [\w-]+)`", "\n".join(ROWS))))


def functions_of(file: Path) -> set[str]:
    """Names of its functions."""
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def titles_of(file: Path) -> set[str]:
    """Of its native tests; "*" stands for all of them."""
    return {"*", *re.findall(r'^TEST\("([^"]+)"\)', file.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("named", NAMED)
def test_what_shows_a_promise_exists(named):
    if named.startswith("make "):
        assert re.search(rf"^{named[5:]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    file, _, test = named.partition("::")
    if file.startswith("native/"):
        assert test in titles_of(ROOT / "tests" / f"{file}.cpp")
    else:
        assert test in functions_of(ROOT / "tests" / f"{file}.py")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_promise_names_what_shows_it(row):
    assert any(f"`{named}`" in row for named in NAMED)
