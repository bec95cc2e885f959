// What can be seen of a rank from outside, without its help: its control segment, read through a descriptor of its memory
// file. Called by `python -m xccl ps` through python/bind_observe.cpp, in a process that is no rank.
// The bytes may be anybody's, and may change meanwhile: they are copied by pread, which cannot fault and takes no memory
// for what was never written; each is checked before it is used. Not here: finding the descriptors (xccl/cli/jobs.py).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "group/world.hpp"

namespace xccl {

struct Observation {
  uint32_t version = 0;  // of the layout; if it is not ours, there is nothing else
  int rank = 0, size = 0;
  uint64_t pid = 0;      // in the owner's PID namespace
  uint64_t meeting = 0;  // alike in all ranks of a job that have met, 0 before
  std::string job;       // bytes, perhaps cut
  RankState state{};

  std::string op;                            // the latest operation, "": none yet
  uint64_t seq = 0, members = 0;             // members: 0 while it is outside
  uint64_t since_ns = 0;                     // when it began or ended
  uint64_t wait_since_ns = 0;                // 0: in no long wait
  std::string phase;                         // of that
  std::vector<int> waits_for;                // its own rank: nobody in particular
  std::vector<int> failed, dead;             // as far as this rank has been told
  std::vector<WaitCount> waited;             // by rank
  uint64_t array_bytes = 0, file_bytes = 0;  // memory of the application area; of the whole file
};

// Nothing if the file does not begin with a control segment that is ready.
std::optional<Observation> observe(int fd);

}  // namespace xccl
