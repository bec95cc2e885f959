// The explaining planner: how many bytes an ExpertParallel and its communicator take on one rank, what for, what
// of it is memory and what only address space, and what would make it smaller. It asks the very layouts that
// the objects are built from. Nothing is allocated.
#pragma once

#include <string>
#include <vector>

#include "moe/ep_layout.hpp"

namespace xccl {

struct PlanLine {
  std::string what;
  uint64_t committed;  // memory, in steady state under the load given
  uint64_t reserved;   // address space
  std::string shrink;  // what would make it smaller
};

// tokens: rows this rank dispatches per call; rows: rows it receives per call, at the most.
std::vector<PlanLine> plan(const EpShape& shape, int ranks, int rank, uint64_t tokens, uint64_t rows);

}  // namespace xccl
