// How the facts of machine.hpp are read from /proc, /sys, the cgroup file systems and the clock.
// Whatever cannot be read counts as "no limit": a missing file must never stop XCCL from starting.

#include "machine.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

namespace xccl {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// ---- small text files of the kernel ---------------------------------------------------------------------

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// A whole number, or kUnlimited for "max", "-1", an unreadable file, anything else.
uint64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value && value >= 0 ? static_cast<uint64_t>(value) : kUnlimited;
}

// The number after `key` in a file of "key value" lines (memory.stat, meminfo); `missing` if it is not there.
uint64_t read_field(const std::string& path, std::string_view key, uint64_t missing) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return missing;
}

uint64_t meminfo_bytes(std::string_view key) {
  const uint64_t kib = read_field("/proc/meminfo", key, kUnlimited);
  return kib == kUnlimited ? kUnlimited : kib * 1024;
}

std::string mib(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

// ---- cgroups --------------------------------------------------------------------------------------------

bool has_item(const std::string& comma_list, std::string_view wanted) {
  std::istringstream items(comma_list);
  for (std::string item; std::getline(items, item, ',');) {
    if (item == wanted) return true;
  }
  return false;
}

// This process's path inside one hierarchy, from "id:controllers:path" lines. An empty controller is v2.
std::optional<std::string> cgroup_path(std::string_view controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool found = controller.empty() ? controllers.empty() : has_item(controllers, controller);
    if (found) return line.substr(second + 1);
  }
  return std::nullopt;
}

struct Mount {
  std::string root;   // which cgroup is seen at `point`: in a container often not "/"
  std::string point;  // where it is mounted
};

std::optional<Mount> cgroup_mount(std::string_view controller) {
  std::ifstream file("/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash)), after(line.substr(dash + 3));
    std::string skip, type, options;
    Mount mount;
    before >> skip >> skip >> skip >> mount.root >> mount.point;
    after >> type >> skip >> options;
    const bool found =
        controller.empty() ? type == "cgroup2" : type == "cgroup" && has_item(options, controller);
    if (found) return mount;
  }
  return std::nullopt;
}

// The folders of this process's cgroup and of all its visible ancestors, innermost first. Where the kernel's
// path lies outside what is mounted here (a container that sees the host's names), the mount point is our own.
std::vector<std::string> cgroup_folders(std::string_view controller) {
  const auto mount = cgroup_mount(controller);
  const auto path = cgroup_path(controller);
  if (!mount || !path) return {};
  std::string below = *path + "/";
  const std::string root = mount->root == "/" ? "/" : mount->root + "/";
  below = below.compare(0, root.size(), root) == 0 ? "/" + below.substr(root.size()) : "/";
  if (below.compare(0, 4, "/../") == 0) below = "/";
  while (!below.empty() && below.back() == '/') below.pop_back();
  std::vector<std::string> folders;
  while (!below.empty()) {
    folders.push_back(mount->point + below);
    below.resize(below.rfind('/'));
  }
  folders.push_back(mount->point);
  return folders;
}

// ---- cores ----------------------------------------------------------------------------------------------

int cores_in_affinity_mask() {
  // The kernel refuses a mask smaller than its own, which may be larger than cpu_set_t: grow until it fits.
  for (int bits = 1024; bits <= 1 << 18; bits *= 2) {
    cpu_set_t* set = CPU_ALLOC(bits);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(bits);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    const int count = ok ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? static_cast<int>(online) : 1;
}

int cores_of_quota(uint64_t quota_us, uint64_t period_us) {
  if (quota_us == kUnlimited || period_us == kUnlimited || period_us == 0)
    return std::numeric_limits<int>::max();
  const uint64_t cores = (quota_us + period_us - 1) / period_us;
  return static_cast<int>(std::clamp<uint64_t>(cores, 1, 1 << 20));
}

int cores_in_cgroup_quota() {
  int cores = std::numeric_limits<int>::max();
  for (const std::string& folder : cgroup_folders("")) {
    std::istringstream words(read_line(folder + "/cpu.max"));  // "max 100000" or "150000 100000"
    uint64_t quota = 0, period = 0;
    if (words >> quota >> period) cores = std::min(cores, cores_of_quota(quota, period));
  }
  for (const std::string& folder : cgroup_folders("cpu")) {
    const uint64_t quota = read_number(folder + "/cpu.cfs_quota_us");
    cores = std::min(cores, cores_of_quota(quota, read_number(folder + "/cpu.cfs_period_us")));
  }
  return cores;
}

// ---- memory ---------------------------------------------------------------------------------------------

void lower_to(MemoryHeadroom& headroom, uint64_t bytes, const std::string& limited_by) {
  if (bytes < headroom.bytes) headroom = {bytes, limited_by};
}

void lower_to_cgroup(MemoryHeadroom& headroom, const std::string& folder, uint64_t limit, uint64_t used,
                     uint64_t droppable) {
  if (limit == kUnlimited || used == kUnlimited) return;
  const uint64_t kept = used - std::min(used, droppable);
  lower_to(headroom, limit - std::min(limit, kept),
           "cgroup limit " + folder + ": " + mib(limit) + ", " + mib(kept) + " used");
}

void lower_to_cgroups(MemoryHeadroom& headroom) {
  for (const std::string& folder : cgroup_folders("")) {
    lower_to_cgroup(headroom, folder, read_number(folder + "/memory.max"),
                    read_number(folder + "/memory.current"),
                    read_field(folder + "/memory.stat", "inactive_file", 0));
  }
  for (const std::string& folder : cgroup_folders("memory")) {
    // hierarchical_memory_limit speaks for ancestors that a container cannot see.
    const std::string stat = folder + "/memory.stat";
    const uint64_t limit = std::min(read_number(folder + "/memory.limit_in_bytes"),
                                    read_field(stat, "hierarchical_memory_limit", kUnlimited));
    lower_to_cgroup(headroom, folder, limit, read_number(folder + "/memory.usage_in_bytes"),
                    read_field(stat, "total_inactive_file", 0));
  }
}

// vm.overcommit_memory = 2 refuses what would exceed the commit limit, however much memory is free.
void lower_to_commit_limit(MemoryHeadroom& headroom) {
  if (read_number("/proc/sys/vm/overcommit_memory") != 2) return;
  const uint64_t limit = meminfo_bytes("CommitLimit:");
  const uint64_t used = meminfo_bytes("Committed_AS:");
  if (limit == kUnlimited || used == kUnlimited) return;
  lower_to(headroom, limit - std::min(limit, used),
           "commit limit of the kernel (vm.overcommit_memory=2): " + mib(limit) + ", " + mib(used) + " used");
}

// ---- distance between cores -----------------------------------------------------------------------------

bool pin_this_thread(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) return false;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
}

constexpr int kBatches = 9;
constexpr int kRounds = 2000;

// One word on a line of its own, so that nothing else makes the line travel. Odd: a's move is over.
struct alignas(128) BouncingLine {
  std::atomic<uint32_t> moves{0};
};

// Waits until `expected` moves were made, then makes the next. Relaxed is enough: only the word itself is
// passed between the two threads, and one word's modification order is the same for both.
void answer(BouncingLine& line, uint32_t expected) {
  while (line.moves.load(std::memory_order_relaxed) != expected) {
  }
  line.moves.store(expected + 1, std::memory_order_relaxed);
}

double median_round_trip_ns(BouncingLine& line) {
  std::array<double, kBatches> batches;
  uint32_t moves = 0;
  for (double& batch : batches) {
    const auto start = std::chrono::steady_clock::now();
    for (int round = 0; round < kRounds; ++round, moves += 2) answer(line, moves);
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    batch = taken.count() / kRounds;
  }
  std::nth_element(batches.begin(), batches.begin() + kBatches / 2, batches.end());
  return batches[kBatches / 2];
}

// Neither side starts to bounce before it knows that the other will: a partner that never answers would be an
// endless wait.
struct Pinning {
  enum Outcome : int { kUnknown, kDone, kFailed };
  std::atomic<int> a{kUnknown}, b{kUnknown};

  void say(std::atomic<int>& mine, Outcome outcome) {
    mine.store(outcome);
    mine.notify_one();
  }

  bool agreed(std::atomic<int>& mine, std::atomic<int>& other, int cpu) {
    const Outcome outcome = pin_this_thread(cpu) ? kDone : kFailed;
    say(mine, outcome);
    other.wait(kUnknown);
    return outcome == kDone && other.load() == kDone;
  }
};

}  // namespace

int usable_cores() {
  static const int cores = std::min(cores_in_affinity_mask(), cores_in_cgroup_quota());
  return cores;
}

MemoryHeadroom memory_headroom() {
  MemoryHeadroom headroom{kUnlimited, "nothing that the kernel tells"};
  const uint64_t available = meminfo_bytes("MemAvailable:");
  lower_to(headroom, available,
           "memory of the machine: " + mib(physical_memory()) + ", " + mib(available) + " available");
  lower_to_commit_limit(headroom);
  lower_to_cgroups(headroom);
  return headroom;
}

std::optional<uint64_t> address_space_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return limit.rlim_cur;
}

uint64_t physical_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page_bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && page_bytes > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes) : 0;
}

// Not sysconf(_SC_LEVEL3_CACHE_SIZE): on virtual machines it tells of all caches of a socket, 320 MiB for 32 seen.
uint64_t shared_cache_bytes() {
  static const uint64_t found = [] {
    constexpr uint64_t usual = uint64_t{32} << 20;
    uint64_t bytes = usual;
    for (int index = 0; index < 8; ++index) {  // from the first level on
      const std::string line =
          read_line("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
      char unit = 0;
      unsigned long long size = 0;
      if (std::sscanf(line.c_str(), "%llu%c", &size, &unit) == 2 && size > 0)
        bytes = size << (unit == 'M' ? 20 : 10);
    }
    // A virtual machine is told of all of a cache that it shares with others: 300 MiB were said where rows of 59 MiB took
    // twice as long through it as past it.
    return std::min(bytes, usual);
  }();
  return found;
}

std::string huge_page_policy() {
  const std::string folder = "/sys/kernel/mm/transparent_hugepage/";
  const std::string shared = read_line(folder + "shmem_enabled");
  const std::string private_memory = read_line(folder + "enabled");
  if (shared.empty() && private_memory.empty()) return "no transparent huge pages in this kernel";
  return "shared memory: " + shared + "; private memory: " + private_memory;
}

double cache_line_round_trip_ns(int cpu_a, int cpu_b) {
  if (cpu_a == cpu_b) return -1;
  BouncingLine line;
  Pinning pinning;
  double result = -1;
  // Both sides run in threads made for this, so that the caller's affinity is left alone.
  std::thread b([&] {
    if (!pinning.agreed(pinning.b, pinning.a, cpu_b)) return;
    for (uint32_t round = 0; round < kBatches * kRounds; ++round) answer(line, 2 * round + 1);
  });
  try {
    std::thread([&] {
      if (pinning.agreed(pinning.a, pinning.b, cpu_a)) result = median_round_trip_ns(line);
    }).join();
  } catch (const std::system_error&) {  // no thread to be had: let b go, too
    pinning.say(pinning.a, Pinning::kFailed);
  }
  b.join();
  return result;
}

}  // namespace xccl
