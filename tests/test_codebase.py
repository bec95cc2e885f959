"""What holds for the tree as a whole: arrows, names, documents. Needs the sources, not only the installed package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xccl
from xccl import _core

ROOT = Path(__file__).resolve().parents[1]
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".hpp", ".cpp"))
PACKAGE = sorted((ROOT / "xccl").rglob("*.py"))
OUTSIDE = [
    path for folder in ("tests", "examples", "bench") for path in sorted((ROOT / folder).rglob("*.py"))
]
EVERY_PYTHON = [*PACKAGE, *OUTSIDE]
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "build"} & set(path.parts))

# Lower may not include higher.
LAYERS = ["base", "kernels", "memory", "sync", "group", "p2p", "collective", "moe", "capi", "python"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_native_includes_point_down(path):
    layer = LAYERS.index(path.relative_to(ROOT / "csrc").parts[0])
    included = re.findall(r'#include "(\w+)/', path.read_text())
    assert all(LAYERS.index(other) <= layer for other in included)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_only_the_command_line_imports_the_command_line(path):
    module = path.relative_to(ROOT / "xccl").as_posix()
    if module.startswith("cli/") or module == "__main__.py":
        return
    assert not [found for found in imports_of(path) if found.startswith("xccl.cli")]


@pytest.mark.parametrize("module", ["errors", "array", "launch/environment"])
def test_the_low_modules_do_not_import_the_communicator(module):
    found = imports_of(ROOT / "xccl" / f"{module}.py")
    assert not [one for one in found if re.match(r"xccl\.(communicator|expert_parallel)", one)]


def test_every_public_name_is_there():
    assert len(set(xccl.__all__)) == len(xccl.__all__)
    for public in xccl.__all__:
        assert getattr(xccl, public) is not None


def test_the_stub_has_the_names_of_the_native_module_and_no_others():
    stub = ast.parse((ROOT / "xccl" / "_core.pyi").read_text())
    listed: dict[str, set[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            listed[node.name] = set()
        elif isinstance(node, ast.ClassDef):
            listed[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            listed[node.target.id] = set()
    del listed["__version__"]
    real = {one for one in dir(_core) if not one.startswith("_")}
    assert set(listed) == real
    for kind, methods in listed.items():
        if methods:
            there = {one for one in dir(getattr(_core, kind)) if not one.startswith("_")}
            assert {one for one in methods if not one.startswith("_")} == there, kind


def test_importing_does_no_work():
    program = """
import os, threading, numpy, ml_dtypes
def facts():
    tasks = len(os.listdir("/proc/self/task"))
    return set(os.listdir("/proc/self/fd")), threading.active_count(), tasks, dict(os.environ)
before = facts()
import xccl
assert before == facts(), (before, facts())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_source_folder_says_that_it_is_not_the_installed_package(tmp_path):
    (tmp_path / "xccl").mkdir()
    (tmp_path / "xccl" / "__init__.py").write_text((ROOT / "xccl" / "__init__.py").read_text())
    line = [sys.executable, "-m", "xccl", "doctor"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "sources only" in done.stderr
    assert "`xccl` command" in done.stderr


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_bytes_of_other_ranks_never_become_code(path):
    text = path.read_text()
    assert not re.search(r"pickle\.loads?\(|\beval\(|\bexec\(|marshal\.load|yaml\.load", text)


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_nothing_is_volatile(path):
    assert not re.search(r"(?<!asm )\bvolatile\b", path.read_text())


def test_nothing_is_built_for_this_machine_only():
    for path in [
        *ROOT.rglob("CMakeLists.txt"),
        ROOT / "CMakePresets.json",
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]:
        if not {".venv", "build"} & set(path.parts):
            assert "-march=native" not in path.read_text(), path


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_native_headers_open_with_what_they_are(path):
    # A .cpp beside its .hpp need not say it again.
    if path.suffix == ".hpp" or not path.with_suffix(".hpp").exists():
        twin = "" if path.suffix == ".hpp" else path.read_text().splitlines()[0]
        first = path.read_text().splitlines()[0]
        implements = re.search(r'#include "[\w/]+\.hpp"', twin)
        assert first.startswith("//") or implements


@pytest.mark.parametrize("path", EVERY_PYTHON, ids=name)
def test_python_files_open_with_what_they_are(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_in_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


SNIPPETS = [
    pytest.param(snippet, id=f"{name(path)}:{number}")
    for path in DOCUMENTS
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


def test_the_readme_has_an_example():
    assert any(str(snippet.id).startswith("README.md") for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_in_the_documents_runs_as_it_stands(snippet, tmp_path):
    program = tmp_path / "example.py"
    program.write_text(snippet)
    command = [sys.executable, "-m", "xccl", "run", "-n", "2", str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "right: False" not in done.stdout
    assert ("right: " in snippet) == ("right: True" in done.stdout)
