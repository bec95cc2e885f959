#include "group/launch_environment.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <climits>
#include <cstdio>
#include <sstream>
#include <vector>

#include "base/error.hpp"

namespace xccl {
namespace {

using Names = std::vector<std::string>;

bool is_set(const Environment& environment, const std::string& name) { return environment.contains(name); }

bool any_set(const Environment& environment, const Names& names) {
  return std::any_of(names.begin(), names.end(), [&](const auto& name) { return is_set(environment, name); });
}

std::string value(const Environment& environment, const std::string& name) {
  const auto entry = environment.find(name);
  return entry == environment.end() ? "" : entry->second;
}

bool is_whole_number(const std::string& digits) {
  return !digits.empty() && digits.size() <= 10 &&
         std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

int number(const Environment& environment, const std::string& name, const std::string& needed_by) {
  if (!is_set(environment, name))
    fail(Status::InvalidArgument, needed_by, " is set but ", name, " is not: set both or none");
  const std::string digits = value(environment, name);
  if (!is_whole_number(digits) || std::stoull(digits) > INT_MAX)
    fail(Status::InvalidArgument, name, "='", digits, "' must be a whole number that is not negative");
  return std::stoi(digits);
}

// Hashed (FNV-1a), because a job's name becomes part of socket names, which are short and take few characters.
std::string job_name(const char* launcher, const std::vector<std::string>& known_by) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&](unsigned char c) { hash = (hash ^ c) * 0x100000001b3; };
  for (const std::string& word : known_by) {
    for (const char c : word) mix(static_cast<unsigned char>(c));
    mix(0);
  }
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash));
  return text(launcher, "-", hex);
}

// --- The rows of the table ---

struct Launcher {
  const char* name;
  bool (*applies)(const Environment&);
  std::string rank, size, local_rank, local_size;  // "": it does not tell
  std::string (*job)(const Environment&);
  bool innermost;  // started by this one itself: RANK and WORLD_SIZE of others mean nothing
};

const Names xccl_names = {"XCCL_RANK", "XCCL_SIZE"};
const Names open_mpi_names = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                              "OMPI_COMM_WORLD_LOCAL_SIZE"};
const Names hydra_names = {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_FD"};
const Names bare_names = {"RANK", "WORLD_SIZE"};

std::string xccl_job(const Environment& environment) {
  const std::string given = value(environment, "XCCL_JOB");
  return given.empty() ? job_name("xccl", {launching_process(environment, xccl_names)}) : given;
}

std::string torchrun_job(const Environment& environment) {
  // A restarted group is a new job: what its predecessor left half-connected must not be found.
  return job_name("torchrun",
                  {value(environment, "TORCHELASTIC_RUN_ID"), value(environment, "MASTER_ADDR"),
                   value(environment, "MASTER_PORT"), value(environment, "TORCHELASTIC_RESTART_COUNT")});
}

std::string open_mpi_job(const Environment& environment) {
  const std::string space = value(environment, "PMIX_NAMESPACE");
  if (space.empty()) return job_name("openmpi", {launching_process(environment, open_mpi_names)});
  // The namespace is made from a process id, which another container on this host may have as well.
  return job_name("openmpi", {space, value(environment, "PMIX_SERVER_URI2")});
}

bool in_slurm_step(const Environment& environment) {
  // A batch script and salloc's shell have a SLURM_PROCID too, but no step, or one of the reserved numbers.
  const std::string step = value(environment, "SLURM_STEP_ID");
  return is_whole_number(step) && std::stoull(step) < 0xffff'0000u &&
         any_set(environment, {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"});
}

bool under_hydra(const Environment& environment) {
  if (!any_set(environment, {"PMI_RANK", "PMI_SIZE"})) return false;
  // srun --mpi=pmi2 sets them too, but Slurm's own variables say more.
  return is_set(environment, "MPI_LOCALNRANKS") || !in_slurm_step(environment);
}

std::string hydra_job(const Environment& environment) {
  const std::string given = value(environment, "I_MPI_HYDRA_UUID");
  return job_name("hydra", {given.empty() ? launching_process(environment, hydra_names) : given});
}

std::string slurm_job(const Environment& environment) {
  return job_name("slurm", {value(environment, "SLURM_JOB_ID"), value(environment, "SLURM_STEP_ID")});
}

std::string bare_job(const Environment& environment) {
  const std::string port = value(environment, "MASTER_PORT");
  if (port.empty()) return job_name("env", {launching_process(environment, bare_names)});
  return job_name("env", {value(environment, "MASTER_ADDR"), port});
}

const std::vector<Launcher>& most_specific_first() {
  static const std::vector<Launcher> table = {
      {"xccl run", [](const Environment& e) { return any_set(e, xccl_names); }, "XCCL_RANK", "XCCL_SIZE",
       "XCCL_LOCAL_RANK", "XCCL_LOCAL_SIZE", xccl_job, true},
      {"torchrun", [](const Environment& e) { return is_set(e, "TORCHELASTIC_RUN_ID"); }, "RANK",
       "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", torchrun_job, true},
      {"Open MPI", [](const Environment& e) { return any_set(e, {open_mpi_names[0], open_mpi_names[1]}); },
       open_mpi_names[0], open_mpi_names[1], open_mpi_names[2], open_mpi_names[3], open_mpi_job, false},
      {"Intel MPI", [](const Environment& e) { return under_hydra(e) && is_set(e, "I_MPI_HYDRA_UUID"); },
       "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", hydra_job, false},
      {"MPICH", under_hydra, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", hydra_job, false},
      {"srun", in_slurm_step, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "", slurm_job, false},
      {"env", [](const Environment& e) { return any_set(e, bare_names); }, "RANK", "WORLD_SIZE", "LOCAL_RANK",
       "LOCAL_WORLD_SIZE", bare_job, false},
  };
  return table;
}

// --- Reading one row ---

// Slurm's "4(x2),3" as {4, 4, 3}.
std::vector<int> tasks_per_node(const std::string& given) {
  std::vector<int> counts;
  std::istringstream parts(given);
  for (std::string part; std::getline(parts, part, ',');) {
    int count = 0, times = 1, read = 0;
    const auto whole = [&] { return read == static_cast<int>(part.size()) && count >= 0 && times >= 0; };
    const bool single = std::sscanf(part.c_str(), "%9d%n", &count, &read) == 1 && whole();
    const bool repeated =
        !single && std::sscanf(part.c_str(), "%9d(x%9d)%n", &count, &times, &read) == 2 && whole();
    if (!single && !repeated)
      fail(Status::InvalidArgument, "SLURM_STEP_TASKS_PER_NODE='", given, "' is not of the form '4(x2),3'");
    counts.insert(counts.end(), static_cast<size_t>(times), count);
  }
  return counts;
}

int slurm_local_size(const Environment& environment, int size) {
  if (!is_set(environment, "SLURM_STEP_TASKS_PER_NODE")) return size;
  const std::vector<int> tasks = tasks_per_node(value(environment, "SLURM_STEP_TASKS_PER_NODE"));
  const auto node = static_cast<size_t>(
      is_set(environment, "SLURM_NODEID") ? number(environment, "SLURM_NODEID", "srun") : 0);
  return node < tasks.size() ? tasks[node] : size;
}

LaunchInfo read(const Launcher& launcher, const Environment& environment) {
  LaunchInfo info;
  info.launcher = launcher.name;
  info.size = number(environment, launcher.size, launcher.rank);
  info.rank = number(environment, launcher.rank, launcher.size);
  const auto told = [&](const std::string& name, int otherwise) {
    return !name.empty() && is_set(environment, name) ? number(environment, name, launcher.name) : otherwise;
  };
  info.local_size = told(launcher.local_size, info.size);
  info.local_rank = told(launcher.local_rank, info.rank);
  if (info.rank >= info.size)
    fail(Status::InvalidArgument, launcher.rank, "=", info.rank, " must be less than ", launcher.size, "=",
         info.size);
  if (info.local_rank >= info.local_size || info.local_size > info.size)
    fail(Status::InvalidArgument, launcher.local_rank, "=", info.local_rank, " must be less than ",
         launcher.local_size.empty() ? launcher.size : launcher.local_size, "=", info.local_size,
         ", and that at most ", launcher.size, "=", info.size);
  if (launcher.applies == in_slurm_step) info.local_size = slurm_local_size(environment, info.size);
  info.job = launcher.job(environment);
  return info;
}

void refuse_contradiction(const LaunchInfo& info, const Environment& environment) {
  if (!is_set(environment, "RANK") || !is_set(environment, "WORLD_SIZE")) return;
  const std::string rank = value(environment, "RANK"), size = value(environment, "WORLD_SIZE");
  if (rank == std::to_string(info.rank) && size == std::to_string(info.size)) return;
  fail(Status::InvalidArgument, info.launcher, " says rank ", info.rank, " of ", info.size,
       ", but RANK=", rank, " and WORLD_SIZE=", size,
       " are set as well: unset these two (they may come from another launcher around this one), or give "
       "rank, size "
       "and job when you join");
}

}  // namespace

Environment process_environment() {
  Environment out;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string pair = *entry;
    if (const size_t end = pair.find('='); end != std::string::npos)
      out.emplace(pair.substr(0, end), pair.substr(end + 1));
  }
  return out;
}

std::optional<LaunchInfo> detect_launch(const Environment& environment) {
  for (const Launcher& launcher : most_specific_first()) {
    if (!launcher.applies(environment)) continue;
    LaunchInfo info = read(launcher, environment);
    if (!launcher.innermost) refuse_contradiction(info, environment);
    return info;
  }
  return std::nullopt;
}

void require_single_host(const LaunchInfo& info) {
  if (info.local_size != info.size)
    fail(Status::InvalidArgument, info.launcher, " started ", info.local_size, " of ", info.size,
         " ranks on this host. XCCL connects the ranks of one host only, so far: start all ranks of a job on "
         "one host");
}

}  // namespace xccl
