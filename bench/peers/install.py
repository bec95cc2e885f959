"""Installs the peers that the benchmarks compare with: `python bench/peers/install.py [NAME ...]`, run by `make bench`.

What is there already stays. A peer that cannot be installed is no error: its reason is written down, and every table
that would have had the peer repeats it. Standard library only. The variable BENCH_TORCH replaces "torch==..." in what
pip is asked for, see bench/README.md.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

from environments import ENVIRONMENTS, FOLDER, TORCH, Environment

LIST_VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
)


def main(names: list[str]) -> int:
    """Installs the named environments, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = {ENVIRONMENTS[name] for name in names or ENVIRONMENTS}
    if any(one.sees_torch for one in wanted):
        wanted.add(ENVIRONMENTS[TORCH])  # before those that see it
    for name, environment in ENVIRONMENTS.items():
        if environment not in wanted:
            continue
        if environment.why_missing() is None:
            continue
        print(f"peers: installing {name}", flush=True)
        problem = install(environment)
        print(f"peers: {name}: {problem or 'installed'}", flush=True)
    return 0


def install(environment: Environment) -> str | None:
    """Makes the environment. Returns the reason why it cannot be used, or None."""
    environment.state.unlink(missing_ok=True)
    try:
        venv.create(environment.folder, clear=True, with_pip=True)
        pip = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, *_packages(environment)])
        if environment.sees_torch:
            _see_torch(environment)
        _run([str(environment.python), "-c", f"import {environment.try_import}"])
        versions = json.loads(_run([str(environment.python), "-c", LIST_VERSIONS]))
        problem = None
    except (subprocess.CalledProcessError, OSError) as error:
        versions = {}
        problem = "cannot be installed: " + _last_line(error)
    environment.state.write_text(json.dumps({"problem": problem, "versions": versions}, indent=1))
    return problem


def _packages(environment: Environment) -> list[str]:
    if environment.name != TORCH:
        return list(environment.packages)
    torch, *others = environment.packages
    return [*shlex.split(os.environ.get("BENCH_TORCH", torch)), *others]


def _see_torch(environment: Environment) -> None:
    """A .pth file's folders come after the environment's own packages, which therefore stay its own."""
    (theirs,) = (ENVIRONMENTS[TORCH].folder / "lib").glob("python*/site-packages")
    (own,) = (environment.folder / "lib").glob("python*/site-packages")
    Path(own, "see-torch.pth").write_text(f"{theirs}\n")


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _last_line(error: Exception) -> str:
    told = getattr(error, "stderr", None) or str(error)
    lines = [line for line in told.splitlines() if line.strip() and "WARNING" not in line]
    return lines[-1].strip() if lines else "no reason was given"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
