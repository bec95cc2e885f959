// Which rank of which job is this process? Read from the variables that launchers set. Called by the bindings and the
// C library when a program joins without saying who it is. It reads the environment and, for launchers that give a job
// no name, /proc; it opens nothing and starts nothing. The names of the variables stand in launch_environment.cpp only.
//
// The first row that applies wins, so that the innermost launcher decides (torchrun started by srun: torchrun):
//
//   launcher  recognised by                            what names the job
//   xccl run  XCCL_RANK, XCCL_SIZE                     XCCL_JOB, else the launching process
//   torchrun  TORCHELASTIC_RUN_ID, RANK, WORLD_SIZE    run id, MASTER_ADDR, MASTER_PORT, restart count
//   Open MPI  OMPI_COMM_WORLD_RANK and _SIZE           PMIX_NAMESPACE and server, else the launching process
//   hydra     PMI_RANK, PMI_SIZE (MPICH, Intel MPI)    I_MPI_HYDRA_UUID, else the launching process
//   srun      SLURM_PROCID, SLURM_STEP_ID and          SLURM_JOB_ID and SLURM_STEP_ID
//             SLURM_STEP_NUM_TASKS, in a step (a batch
//             script or the shell of salloc is none)
//   env       RANK, WORLD_SIZE alone (by hand, or by   MASTER_ADDR and MASTER_PORT, else the launching
//             a launcher that speaks like torch's)     process
//
// RANK and WORLD_SIZE are such common names that they decide nothing where MPI or srun says something else: that is an
// error which names both. A launcher that does not tell how many ranks are on this host is taken to have put all here.
#pragma once

#include <optional>
#include <string>

#include "group/launching_process.hpp"

namespace xccl {

// What a launcher said about this process. `job` is the same in all ranks of one job, and in no other.
struct LaunchInfo {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;
  std::string job;
  std::string launcher;
};

// Of this process, now.
Environment process_environment();

// Nothing if there is no launcher. InvalidArgument, naming the variables, if they contradict each other or half of them
// is missing.
std::optional<LaunchInfo> detect_launch(const Environment& environment);

// InvalidArgument if the job spans several hosts, which XCCL cannot do yet.
void require_single_host(const LaunchInfo& info);

}  // namespace xccl
