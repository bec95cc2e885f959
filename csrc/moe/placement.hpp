// Which rank hosts which expert. Every rank has slots, each of which holds one expert or none; the slots of all ranks
// are numbered by position: all of rank 0's first, then rank 1's, and so on. Routing sorts by position, so that what
// goes to one rank, and there to one expert, lies together. An expert in several slots has replicas.
//
// Slots never change, what they hold may: so positions mean the same under every placement of one ExpertParallel.
// Everything above goes through these functions. Not here: which placement is good (xccl/eplb/).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace xccl {

class Placement {
 public:
  static constexpr int32_t nobody = -1;  // the expert of an empty slot

  // Equal contiguous blocks of experts, the first ranks one more where it does not divide.
  Placement(int num_experts, int ranks);
  // slots: how many each rank has; held: the expert in each, by position. InvalidArgument if an expert is nowhere, or
  // is not from 0 to num_experts - 1.
  Placement(int num_experts, const std::vector<int32_t>& slots, std::vector<int32_t> held);
  // The same slots with other experts in them. InvalidArgument, as above, and if they are not as many.
  Placement holding(std::vector<int32_t> held) const;

  int experts() const { return static_cast<int>(replica_start_.size()) - 1; }
  int ranks() const { return static_cast<int>(first_.size()) - 1; }
  int positions() const { return first_.back(); }
  // The first position on a rank; first(ranks()) is the number of positions.
  int first(int rank) const { return first_[static_cast<size_t>(rank)]; }
  int count(int rank) const { return first(rank + 1) - first(rank); }
  int rank_of(int position) const { return rank_of_[static_cast<size_t>(position)]; }
  int expert(int position) const { return held_[static_cast<size_t>(position)]; }

  // Every expert is at the position of its own number, as in the even spread: nothing has to be looked up.
  bool plain() const { return plain_; }
  int replicas(int expert) const { return static_cast<int>(start(expert + 1) - start(expert)); }
  // Replicas take turns, in the order of their positions.
  int position(int expert, uint64_t turn) const {
    const auto count = static_cast<uint32_t>(replicas(expert));
    return replica_[start(expert) + (count == 1 ? 0 : static_cast<uint32_t>(turn % count))];
  }
  // The same, but a replica on this rank comes first.
  int position_near(int rank, int expert, uint64_t turn) const;

  // Equal for equal placements, and for no others that anybody will meet.
  uint64_t digest() const;

 private:
  uint32_t start(int expert) const { return replica_start_[static_cast<size_t>(expert)]; }
  void index(int num_experts);

  std::vector<int32_t> first_;           // (ranks + 1)
  std::vector<int32_t> held_, rank_of_;  // by position
  std::vector<uint32_t> replica_start_;  // (experts + 1), in
  std::vector<int32_t> replica_;         // positions, expert by expert
  bool plain_ = false;
};

}  // namespace xccl
