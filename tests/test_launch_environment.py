"""xccl/launch/environment.py: the variables of each launcher, their contradictions, and real launchers if
installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from xccl.errors import InvalidArgument
from xccl.launch.environment import LaunchInfo, check_single_host, detect

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    "PMIX_NAMESPACE": "prterun-host-7@1",
}
HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
INTEL = {**HYDRA, "I_MPI_HYDRA_UUID": "a91e0000-c0b1"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "5",
    "SLURM_NODEID": "0",
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "6",
    "SLURM_NTASKS": "12",
}
XCCL_RUN = {
    "XCCL_RANK": "0",
    "XCCL_SIZE": "2",
    "XCCL_LOCAL_RANK": "0",
    "XCCL_LOCAL_SIZE": "2",
    "XCCL_JOB": "mine",
}


def found(environ: dict[str, str]) -> LaunchInfo:
    info = detect(environ)
    assert info is not None
    return info


@pytest.mark.parametrize(
    ("environ", "launcher", "rank", "size"),
    [
        (TORCHRUN, "torchrun", 1, 4),
        (OPEN_MPI, "Open MPI", 2, 3),
        (HYDRA, "MPICH", 0, 2),
        (INTEL, "Intel MPI", 0, 2),
        (SRUN, "srun", 5, 6),
        (XCCL_RUN, "xccl run", 0, 2),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "env", 1, 2),
    ],
)
def test_each_launcher_is_recognised(environ, launcher, rank, size):
    info = found(environ)
    assert (info.launcher, info.rank, info.size) == (launcher, rank, size)
    assert (info.local_rank, info.local_size) == (rank, size)
    check_single_host(info)


def test_without_a_launcher_there_is_nothing():
    assert detect({"PATH": "/bin", "HOME": "/"}) is None


def test_a_batch_script_and_the_shell_of_salloc_are_no_steps():
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_JOB_ID": "17"}
    assert detect(batch) is None
    interactive_step = {**batch, "SLURM_STEP_ID": str(0xFFFF_FFFA), "SLURM_STEP_NUM_TASKS": "1"}
    assert detect(interactive_step) is None


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (TORCHRUN, SRUN),
        (TORCHRUN, OPEN_MPI),
        (OPEN_MPI, SRUN),
        (HYDRA, SRUN),
        (XCCL_RUN, SRUN),
        (XCCL_RUN, TORCHRUN),
    ],
)
def test_the_innermost_launcher_decides(inner, outer):
    assert found({**outer, **inner}) == found(inner)


def test_srun_with_pmi2_is_srun():
    assert found({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "6"}).launcher == "srun"


@pytest.mark.parametrize("changed", ["MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"])
def test_another_torchrun_or_a_restart_is_another_job(changed):
    assert found(TORCHRUN).job == found({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}).job
    assert found(TORCHRUN).job != found({**TORCHRUN, changed: "7"}).job


@pytest.mark.parametrize(
    ("environ", "changed"),
    [(OPEN_MPI, "PMIX_NAMESPACE"), (SRUN, "SLURM_STEP_ID"), (INTEL, "I_MPI_HYDRA_UUID")],
)
def test_the_job_follows_what_the_launcher_calls_it(environ, changed):
    assert found(environ).job != found({**environ, changed: "9"}).job


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"XCCL_RANK": "0"}, "XCCL_SIZE"),
        ({"PMI_SIZE": "2"}, "PMI_RANK"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0"}, "WORLD_SIZE"),
    ],
)
def test_a_half_set_pair_is_an_error_that_names_the_missing_half(environ, missing):
    with pytest.raises(InvalidArgument, match=rf"\b{missing}\b"):
        detect(environ)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must be less than WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK=''"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "six"}, "SLURM_STEP_TASKS_PER_NODE='six'"),
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "8"}, "RANK=0 and WORLD_SIZE=8"),
    ],
)
def test_a_contradiction_is_an_error_that_names_the_variables(environ, said):
    with pytest.raises(InvalidArgument) as caught:
        detect(environ)
    assert said in str(caught.value)


def test_rank_and_world_size_may_repeat_what_mpi_says():
    assert found({**OPEN_MPI, "RANK": "2", "WORLD_SIZE": "3"}).launcher == "Open MPI"


@pytest.mark.parametrize(
    "environ",
    [
        {**TORCHRUN, "LOCAL_WORLD_SIZE": "2"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
        {**SRUN, "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2),4"},
    ],
)
def test_more_than_one_host_is_refused(environ):
    with pytest.raises(InvalidArgument, match="one host"):
        check_single_host(found(environ))


PRINT_JOB = """
import json, sys
from xccl.launch.environment import detect
info = detect()
sys.stdout.write(json.dumps([info.job, info.rank, info.size, info.local_size]) + "\\n")
"""

# Open MPI, if it is that: more ranks than cores, also in a container where everybody is root.
OPEN_MPI_MAY = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
LAUNCHERS = {
    "xccl run": [sys.executable, "-m", "xccl", "run", "-n", "3"],
    "mpirun": ["mpirun", "-n", "3"],
    "torchrun": ["torchrun", "--nproc-per-node", "3", "--no-python"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["directly", "in a shell script"])
def test_two_real_jobs_at_once_have_two_names(launcher, wrapped, tmp_path):
    command = LAUNCHERS[launcher]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / "job.py").write_text(PRINT_JOB)
    (tmp_path / "wrapper.sh").write_text(
        f"{sys.executable} job.py\ntrue\n"
    )  # `true` keeps the shell from exec
    program = ["sh", "wrapper.sh"] if wrapped else [sys.executable, "job.py"]
    both = [
        subprocess.Popen(
            command + program, cwd=tmp_path, env={**os.environ, **OPEN_MPI_MAY}, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    jobs = []
    for process in both:
        out, _ = process.communicate(timeout=100)
        ranks = sorted(json.loads(line) for line in out.splitlines())
        assert [r[1:] for r in ranks] == [[0, 3, 3], [1, 3, 3], [2, 3, 3]]
        jobs.append({r[0] for r in ranks})
    assert len(jobs[0]) == len(jobs[1]) == 1
    assert jobs[0] != jobs[1]
