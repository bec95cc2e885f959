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

// What happens in every call.
struct PlanLoad {
  uint64_t tokens;  // dispatched by this rank
  uint64_t rows;    // received by this rank, at the most
  bool in_place;    // combine is given d.x itself, so no second set of rows is needed
};

// Rows that this rank receives when every rank dispatches so many tokens, spread evenly over all experts but the shared
// ones, which get all. For a shape that check() accepts, and at most max_tokens.
uint64_t even_rows(const EpShape& shape, const Placement& placement, int rank, uint64_t tokens);

// OutOfMemory if there is no room for the records of so many ranks: then they cannot join, and nothing else matters.
void require_joinable(int ranks, uint64_t annex_bytes);

// 0 <= rank < ranks of the placement. InvalidArgument as for the ExpertParallel itself.
// `annex_bytes`: of the communicator's lines, see Communicator::AnnexBytes.
std::vector<PlanLine> plan(const EpShape& shape, const Placement& placement, int rank, const PlanLoad& load,
                           uint64_t annex_bytes);

}  // namespace xccl
