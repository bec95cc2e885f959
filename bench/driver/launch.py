"""How the rank processes of a team are started: command line and environment of each launcher.

Used by group.py. The settings of the peers' launchers are those with which they were found fastest on few cores: no
binding (every rank pins itself once its library has started), yielding where there are more ranks than cores.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from peers.environments import ENVIRONMENTS

BENCH = Path(__file__).resolve().parents[1]

# One thread for each rank's arithmetic: there are no cores for more.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Team:
    """Processes that are the ranks of one library, and how they are started."""

    part: str  #: the module in parts/ that they run
    environment: str = ""  #: name in peers/environments.py; "" is this interpreter, where XCCL is installed
    launcher: str = "plain"  #: "plain", "xccl", or the name of an MPI
    settings: tuple[tuple[str, str], ...] = ()  #: environment variables
    arguments: tuple[str, ...] = ()  #: more arguments for the launcher
    options: tuple[tuple[str, str], ...] = ()  #: for the part
    pinned: bool = True  #: rank r stays on core r mod cores
    program: str = "rank.py"

    def why_missing(self) -> str | None:
        """Why it cannot be started here, or None."""
        for name in (self.environment, self.launcher):
            if name in ENVIRONMENTS and (reason := ENVIRONMENTS[name].why_missing()):
                return reason
        return None

    @property
    def one_process_each(self) -> bool:
        """The driver starts every rank itself."""
        return self.launcher == "plain"

    def command(self, size: int) -> list[str]:
        """What to execute; once, or once for each rank."""
        python = str(ENVIRONMENTS[self.environment].python) if self.environment else sys.executable
        program = [python, str(BENCH / self.program)]
        if self.launcher == "plain":
            return program
        if self.launcher == "xccl":
            return [python, "-m", "xccl", "run", "-n", str(size), *program[1:]]
        mpiexec = str(ENVIRONMENTS[self.launcher].folder / "bin" / "mpiexec")
        return [mpiexec, "-n", str(size), *_MPI_ARGUMENTS[self.launcher], *self.arguments, *program]

    def variables(self, size: int) -> dict[str, str]:
        """The processes' environment."""
        crowded = size > len(os.sched_getaffinity(0))
        own = _MPI_SETTINGS.get(self.launcher, {})
        crowd = _MPI_SETTINGS_CROWDED.get(self.launcher, {}) if crowded else {}
        return {**os.environ, **ONE_THREAD, **own, **crowd, **dict(self.settings)}


_MPI_ARGUMENTS = {
    "openmpi": ["--oversubscribe", "--bind-to", "none"],
    "mpich": ["-bind-to", "none"],
    "impi": [],
}

_IMPI_LIB = ENVIRONMENTS["impi"].folder / "lib"

_MPI_SETTINGS = {
    "openmpi": {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_btl_base_warn_component_unused": "0",
    },
    "impi": {
        "LD_LIBRARY_PATH": f"{_IMPI_LIB}:{_IMPI_LIB / 'libfabric'}",
        "I_MPI_FABRICS": "shm",
        "I_MPI_PIN": "0",
    },
}

_MPI_SETTINGS_CROWDED = {
    "openmpi": {"OMPI_MCA_mpi_yield_when_idle": "1"},
    "mpich": {"MPIR_CVAR_ENABLE_PROGRESS_YIELD": "1"},
}
