// Routing: which (token, slot) pair goes to which row of which rank. Built by counting, from topk_idx on the source's
// side, and from the other ranks' route lists on the receiver's. Small; lives in this rank's own memory;
// may be used for any number of later calls (a training engine's backward pass).
// Not here: how lists travel (dispatch.cpp) and where they lie in shared memory (ep_layout.hpp).
#pragma once

#include <cstdint>
#include <vector>

#include "moe/placement.hpp"

namespace xccl {

// As the caller gives it, row-major. -1: no expert in this slot.
struct TopK {
  const void* experts = nullptr;   // (tokens, topk) int32 or int64
  bool wide = true;                // int64
  const float* weights = nullptr;  // (tokens, slots): shared experts follow after the topk
  int64_t tokens = 0;
  int64_t tag = -1;  // what this dispatch is for; -1: not said
};

constexpr int32_t nowhere = -1;

struct Routing {
  uint64_t maker = 0;      // the ExpertParallel that made it (ExpertParallel::serial)
  uint64_t id = 0;         // number of the dispatch that made it, there
  uint64_t placement = 0;  // how often the placement had changed when it was made
  int64_t tokens = 0;

  // --- Source's side. ---
  std::vector<int32_t> position_of_slot;  // (tokens * slots): of the slot's expert, or nowhere
  std::vector<uint32_t> place_of_slot;    // how many of this rank's pairs for that expert come before it
  std::vector<uint32_t> position_start;   // (positions + 1): pairs for all positions before
  std::vector<float> weights;             // (tokens * slots), as given

  uint32_t pairs() const { return position_start.back(); }
  uint32_t pairs_at(size_t position) const { return position_start[position + 1] - position_start[position]; }
  uint32_t rows_to(const Placement& placement, int rank) const {
    return position_start[static_cast<size_t>(placement.first(rank + 1))] -
           position_start[static_cast<size_t>(placement.first(rank))];
  }

  // --- Receiver's side. Rows are in the order (local expert, source rank, source token, slot). A local expert is a
  // slot of this rank, in which nothing may lie. ---
  std::vector<int64_t> counts;     // (local experts)
  std::vector<uint32_t> row_base;  // (ranks, local experts): first row from that source for that expert
  std::vector<int32_t> src_rank;   // per row
  std::vector<int32_t> src_token;
  std::vector<float> row_weight;
  std::vector<uint32_t>
      arrivals;  // the rows in the order (source rank, source token, slot), as they are pulled
  std::vector<int32_t>
      token_row;             // in layout "token", per row: where its token lies among the tokens received
  uint64_t tokens_here = 0;  // tokens of which this rank has rows, each counted once

  std::vector<uint64_t> tokens_of;  // (ranks): tokens that source dispatched
  std::vector<uint64_t> rows_of;    // (ranks): rows it sent here

  uint64_t rows() const { return src_rank.size(); }
};

// The source's side, on rank `source`. A token has `chosen` experts, then all the shared ones. Which replica of an
// expert it goes to depends on (source, token) alone; if one of a shared expert is on the source, it is that one.
// InvalidArgument naming the first expert out of range.
void route(const TopK& topk, int chosen, const std::vector<int32_t>& shared, const Placement& placement,
           int source, Routing& routing);

}  // namespace xccl
