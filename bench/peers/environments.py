"""The peers' environments: which packages each needs, and where it lies. Standard library only.

One environment for each MPI, since their wheels overwrite each other's mpiexec. The MPI environments see the packages
of the one with torch, after their own. Not here: installing them (install.py), starting programs in them
(driver/launch.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "peers"
TORCH = "torch"


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds one peer."""

    name: str
    packages: tuple[str, ...]
    try_import: str
    sees_torch: bool = False

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def state(self) -> Path:
        """What became of installing it, as JSON: {"problem": text or null, "versions": {package: version}}."""
        return FOLDER / f"{self.name}.json"

    def why_missing(self) -> str | None:
        """Why it cannot be used, or None."""
        if not self.state.exists():
            return "not installed: `make bench` does that"
        problem: str | None = json.loads(self.state.read_text())["problem"]
        return problem

    def versions(self) -> dict[str, str]:
        """What is installed in it."""
        found: dict[str, str] = json.loads(self.state.read_text())["versions"] if self.state.exists() else {}
        return found


_MPI = ("numpy", "mpi4py")

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(TORCH, ("torch==2.13.0", "numpy"), "torch, torch.distributed"),
        Environment("impi", (*_MPI, "impi-rt"), "mpi4py, numpy", sees_torch=True),
        Environment("openmpi", (*_MPI, "openmpi"), "mpi4py, numpy", sees_torch=True),
        Environment("mpich", (*_MPI, "mpich"), "mpi4py, numpy", sees_torch=True),
        Environment("iceoryx2", ("numpy", "iceoryx2"), "iceoryx2"),
    )
}
