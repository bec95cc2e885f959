"""Which rank of which job is this process? Read from the variables that launchers set.

Called by `xccl.init()` and `doctor`. It reads the environment and, for launchers that give a job no name,
/proc; it opens nothing and starts nothing. The names of the variables stand in this file only.

The first row that applies wins, so that the innermost launcher decides (torchrun started by srun: torchrun):

========= ======================================== ======================================================
launcher  recognised by                            what names the job
========= ======================================== ======================================================
xccl run  XCCL_RANK, XCCL_SIZE                     XCCL_JOB, else the launching process
torchrun  TORCHELASTIC_RUN_ID, RANK, WORLD_SIZE    run id, MASTER_ADDR, MASTER_PORT, restart count
Open MPI  OMPI_COMM_WORLD_RANK and _SIZE           PMIX_NAMESPACE and server, else the launching process
hydra     PMI_RANK, PMI_SIZE (MPICH, Intel MPI)    I_MPI_HYDRA_UUID, else the launching process
srun      SLURM_PROCID, SLURM_STEP_ID and          SLURM_JOB_ID and SLURM_STEP_ID
          SLURM_STEP_NUM_TASKS, in a step (a batch
          script or the shell of salloc is none)
env       RANK, WORLD_SIZE alone (by hand, or by   MASTER_ADDR and MASTER_PORT, else the launching
          a launcher that speaks like torch's)     process
========= ======================================== ======================================================

RANK and WORLD_SIZE are such common names that they decide nothing where MPI or srun says something else: that
is an error which names both. A launcher that does not tell how many ranks are on this host is taken to have
put all of them here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from xccl.errors import InvalidArgument
from xccl.launch.ancestors import launching_process

Environ = Mapping[str, str]


@dataclass(frozen=True)
class LaunchInfo:
    """What a launcher said about this process. `job` is the same in all ranks of one job, and in no other."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    job: str
    launcher: str


def detect(environ: Environ | None = None) -> LaunchInfo | None:
    """What the launcher of this process said, or None if there is none. `environ` is `os.environ` if not
    given.

    Raises InvalidArgument, naming the variables, if they contradict each other or half of them is missing.
    """
    environ = os.environ if environ is None else environ
    info = next((found for look in _MOST_SPECIFIC_FIRST if (found := look(environ)) is not None), None)
    if info is None:
        return _bare(environ)
    if info.launcher not in ("xccl run", "torchrun"):
        _refuse_contradiction(info, environ)
    return info


def check_single_host(info: LaunchInfo) -> None:
    """Raises InvalidArgument if the job spans several hosts, which XCCL cannot do yet."""
    if info.local_size != info.size:
        raise InvalidArgument(
            f"{info.launcher} started {info.local_size} of {info.size} ranks on this host. XCCL connects the "
            "ranks of one host only, so far: start all ranks of a job on one host"
        )


def _xccl_run(environ: Environ) -> LaunchInfo | None:
    if not _any_set(environ, "XCCL_RANK", "XCCL_SIZE"):
        return None
    job = environ.get("XCCL_JOB") or _job_name("xccl", launching_process(environ, ("XCCL_RANK", "XCCL_SIZE")))
    return _info("xccl run", environ, "XCCL_RANK", "XCCL_SIZE", "XCCL_LOCAL_RANK", "XCCL_LOCAL_SIZE", job)


def _torchrun(environ: Environ) -> LaunchInfo | None:
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    # A restarted group is a new job: what its predecessor left half-connected must not be found.
    known_by = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    job = _job_name("torchrun", *(environ.get(name, "") for name in known_by))
    return _info("torchrun", environ, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", job)


def _open_mpi(environ: Environ) -> LaunchInfo | None:
    rank_and_size = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    names = (*rank_and_size, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    if not _any_set(environ, *rank_and_size):
        return None
    namespace = environ.get("PMIX_NAMESPACE")
    # The namespace is made from a process id, which another container on this host may have as well.
    server = environ.get("PMIX_SERVER_URI2", "")
    job = _job_name("openmpi", *((namespace, server) if namespace else (launching_process(environ, names),)))
    return _info("Open MPI", environ, *names, job)


def _hydra(environ: Environ) -> LaunchInfo | None:
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if not _any_set(environ, *names[:2]):
        return None
    if "MPI_LOCALNRANKS" not in environ and _in_slurm_step(environ):
        return None  # srun --mpi=pmi2 sets them too, but Slurm's own variables say more
    job = _job_name(
        "hydra", environ.get("I_MPI_HYDRA_UUID") or launching_process(environ, (*names, "PMI_FD"))
    )
    return _info("Intel MPI" if "I_MPI_HYDRA_UUID" in environ else "MPICH", environ, *names, job)


def _slurm(environ: Environ) -> LaunchInfo | None:
    if not _in_slurm_step(environ):
        return None
    size = _number(environ, "SLURM_STEP_NUM_TASKS")
    node = _number(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    job = _job_name("slurm", environ.get("SLURM_JOB_ID", ""), environ["SLURM_STEP_ID"])
    info = _info("srun", environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "", job)
    return replace(info, local_size=tasks[node] if node < len(tasks) else info.size)


def _bare(environ: Environ) -> LaunchInfo | None:
    if not _any_set(environ, "RANK", "WORLD_SIZE"):
        return None
    known_by = [environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")]
    if not known_by[1]:
        known_by = [launching_process(environ, ("RANK", "WORLD_SIZE"))]
    return _info(
        "env", environ, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", _job_name("env", *known_by)
    )


_MOST_SPECIFIC_FIRST: tuple[Callable[[Environ], LaunchInfo | None], ...] = (
    _xccl_run,
    _torchrun,
    _open_mpi,
    _hydra,
    _slurm,
)


def _refuse_contradiction(info: LaunchInfo, environ: Environ) -> None:
    said = (environ.get("RANK"), environ.get("WORLD_SIZE"))
    if None in said or said == (str(info.rank), str(info.size)):
        return
    raise InvalidArgument(
        f"{info.launcher} says rank {info.rank} of {info.size}, but RANK={said[0]} and WORLD_SIZE={said[1]} "
        "are set as well: unset these two (they may come from another launcher around this one), or call "
        "xccl.init(rank=..., size=..., job=...)"
    )


def _in_slurm_step(environ: Environ) -> bool:
    # A batch script and salloc's shell have a SLURM_PROCID too, but no step, or one of the reserved numbers.
    step = environ.get("SLURM_STEP_ID", "")
    return (
        step.isdecimal()
        and int(step) < 0xFFFF_0000
        and _any_set(environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    )


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "4(x2),3" as [4, 4, 3]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise InvalidArgument(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not of the form '4(x2),3'")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _info(
    launcher: str, environ: Environ, rank: str, size: str, local_rank: str, local_size: str, job: str
) -> LaunchInfo:
    """A LaunchInfo from the variables of these names, checked."""
    n = _number(environ, size, needed_by=rank)
    r = _number(environ, rank, needed_by=size)
    local_n = _number(environ, local_size) if local_size in environ else n
    local_r = _number(environ, local_rank) if local_rank in environ else r
    if r >= n:
        raise InvalidArgument(f"{rank}={r} must be less than {size}={n}")
    if not local_r < local_n <= n:
        raise InvalidArgument(
            f"{local_rank}={local_r} must be less than {local_size}={local_n}, and that at most {size}={n}"
        )
    return LaunchInfo(r, n, local_r, local_n, job, launcher)


def _number(environ: Environ, name: str, needed_by: str = "") -> int:
    text = environ.get(name)
    if text is None:
        raise InvalidArgument(f"{needed_by or 'a launcher'} is set but {name} is not: set both or none")
    if not (text.isascii() and text.isdecimal()):
        raise InvalidArgument(f"{name}={text!r} must be a whole number that is not negative")
    return int(text)


def _any_set(environ: Environ, *names: str) -> bool:
    return any(name in environ for name in names)


def _job_name(launcher: str, *known_by: str) -> str:
    # Hashed, because a job's name becomes part of socket names, which are short and take few characters.
    return f"{launcher}-{hashlib.sha256(chr(0).join(known_by).encode()).hexdigest()[:16]}"
