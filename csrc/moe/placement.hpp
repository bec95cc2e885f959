// Which rank hosts which expert. Experts are numbered by position: all of rank 0's first, then rank 1's, and so
// on; routing sorts by position, so that what goes to one rank, and there to one expert, lies together.
// Now: equal contiguous blocks, the first ranks one more where it does not divide. Everything above goes through
// these functions, so that a freer placement changes this file only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace xccl {

class Placement {
 public:
  Placement(int num_experts, int ranks) : experts_(num_experts), ranks_(ranks) {}

  int experts() const { return experts_; }
  int ranks() const { return ranks_; }
  // The first position on a rank; first(ranks()) is the number of experts.
  int first(int rank) const { return rank * (experts_ / ranks_) + std::min(rank, experts_ % ranks_); }
  int count(int rank) const { return first(rank + 1) - first(rank); }
  int rank_of(int position) const {
    const int each = experts_ / ranks_, larger = experts_ % ranks_, in_larger = larger * (each + 1);
    return position < in_larger ? position / (each + 1) : larger + (position - in_larger) / each;
  }
  int position(int expert) const { return expert; }
  int expert(int position) const { return position; }

 private:
  int experts_, ranks_;
};

}  // namespace xccl
