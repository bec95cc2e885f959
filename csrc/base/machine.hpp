// Facts about this machine: cores, memory that can still be had, huge pages, how far two cores are apart.
// Called by the heap (before it takes memory), by waiting (how many can spin) and, through the bindings, by
// `doctor`. It only reads what the kernel says. Not here: deciding anything from these facts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace xccl {

// Cores that this process may run on: its affinity mask, and the CPU quota of its cgroups (v1 and v2) rounded
// up. At least 1. Asked of the kernel once, then remembered.
int usable_cores();

// Bytes that can still be committed before something refuses them or kills a process for them.
struct MemoryHeadroom {
  uint64_t bytes;
  std::string limited_by;  // for error messages: "cgroup limit /sys/fs/cgroup/job: 512 MiB, 480 MiB used"
};

// The least of: available memory of the machine, its commit limit where the kernel enforces one, and every
// memory cgroup (v1 and v2) above this process. Page cache that the kernel can drop counts as free. Address
// space is another matter: see address_space_limit(). Not cached; costs a few file reads.
MemoryHeadroom memory_headroom();

// RLIMIT_AS in bytes; nothing when it is unlimited.
std::optional<uint64_t> address_space_limit();

// All memory of the machine, in bytes, whatever this process may use of it.
uint64_t physical_memory();

// The last level of cache, as one group of cores shares it, and no more than can be counted on. Read once; 32 MiB where
// nobody tells.
uint64_t shared_cache_bytes();

// The kernel's settings for huge pages in shared and in private memory, as one line of text.
std::string huge_page_policy();

// How long one cache line takes to go from core a to core b and back: the median of several batches, in
// nanoseconds. -1 if no thread can be pinned to one of them, or if a and b are the same. Takes milliseconds.
double cache_line_round_trip_ns(int cpu_a, int cpu_b);

}  // namespace xccl
