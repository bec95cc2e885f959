// Routing: which (token, slot) pair goes to which row of which rank. Built by a counting sort from topk_idx on the
// source's side, and from the other ranks' route lists on the receiver's. Small; lives in this rank's own memory;
// may be used for any number of later calls (a training engine's backward pass).
// Not here: how lists travel (dispatch.cpp) and where they lie in shared memory (ep_layout.hpp).
#pragma once

#include <cstdint>
#include <vector>

#include "moe/placement.hpp"

namespace xccl {

// As the caller gives it: (tokens, topk) row-major. -1: no expert in this slot.
struct TopK {
  const void* experts = nullptr;  // int32 or int64
  bool wide = true;               // int64
  const float* weights = nullptr;
  int64_t tokens = 0;
};

constexpr uint32_t no_pair = UINT32_MAX;

struct Routing {
  uint64_t maker = 0;  // the ExpertParallel that made it (ExpertParallel::serial)
  uint64_t id = 0;     // number of the dispatch that made it, there
  int64_t tokens = 0;

  // --- Source's side. A pair's place in the order (position, token, slot) is its index. ---
  std::vector<uint32_t> pair_of_slot;    // (tokens * topk): index of the pair, or no_pair
  std::vector<uint32_t> position_start;  // (experts + 1): index of the first pair of each position
  std::vector<int32_t> token_of_pair;
  std::vector<float> weight_of_pair;
  std::vector<float> weights;  // (tokens * topk), as given

  uint32_t pairs() const { return static_cast<uint32_t>(token_of_pair.size()); }
  uint32_t rows_to(const Placement& placement, int rank) const {
    return position_start[static_cast<size_t>(placement.first(rank + 1))] -
           position_start[static_cast<size_t>(placement.first(rank))];
  }

  // --- Receiver's side. Rows are in the order (local expert, source rank, source token, slot). ---
  std::vector<int64_t> counts;     // (local experts)
  std::vector<uint32_t> row_base;  // (ranks, local experts): first row from that source for that expert
  std::vector<int32_t> src_rank;   // per row
  std::vector<int32_t> src_token;
  std::vector<float> row_weight;

  std::vector<uint64_t> tokens_of;  // (ranks): tokens that source dispatched
  std::vector<uint64_t> rows_of;    // (ranks): rows it sent here

  uint64_t rows() const { return src_rank.size(); }
};

// The source's side. InvalidArgument naming the first expert out of range.
void route(const TopK& topk, int slots, const Placement& placement, Routing& routing);

}  // namespace xccl
