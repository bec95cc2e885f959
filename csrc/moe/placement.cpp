#include "moe/placement.hpp"

#include <numeric>
#include <utility>

#include "base/error.hpp"

namespace xccl {

Placement::Placement(int num_experts, int ranks) {
  const int each = num_experts / ranks, larger = num_experts % ranks;
  first_.push_back(0);
  for (int rank = 0; rank < ranks; ++rank) first_.push_back(first_.back() + each + (rank < larger));
  held_.resize(static_cast<size_t>(num_experts));
  std::iota(held_.begin(), held_.end(), 0);
  index(num_experts);
}

Placement::Placement(int num_experts, const std::vector<int32_t>& slots, std::vector<int32_t> held)
    : held_(std::move(held)) {
  int64_t total = 0;
  first_.push_back(0);
  for (size_t rank = 0; rank < slots.size(); ++rank) {
    total += slots[rank];
    if (slots[rank] < 0 || total > (1 << 22))
      fail(Status::InvalidArgument, "placement: rank ", rank, " has ", slots[rank],
           " slots: expected 0 or more, and not more than ", 1 << 22, " in all");
    first_.push_back(static_cast<int32_t>(total));
  }
  if (static_cast<size_t>(total) != held_.size())
    fail(Status::InvalidArgument, "placement has ", held_.size(), " entries for ", total, " slots");
  index(num_experts);
}

Placement Placement::holding(std::vector<int32_t> held) const {
  if (held.size() != held_.size())
    fail(Status::InvalidArgument, "placement has ", held.size(), " entries: expected one for each of the ",
         held_.size(), " slots, which stay as they are");
  Placement other = *this;
  other.held_ = std::move(held);
  other.index(experts());
  return other;
}

// Makes what can be looked up of what is held, and checks that.
void Placement::index(int num_experts) {
  rank_of_.clear();
  for (int rank = 0; rank < ranks(); ++rank)
    rank_of_.insert(rank_of_.end(), static_cast<size_t>(count(rank)), rank);
  replica_start_.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (size_t position = 0; position < held_.size(); ++position) {
    const int32_t expert = held_[position];
    if (expert < nobody || expert >= num_experts)
      fail(Status::InvalidArgument, "placement: rank ", rank_of_[position], " has expert ", expert,
           " in slot ", static_cast<int32_t>(position) - first(rank_of_[position]),
           ": expected -1 (empty) to ", num_experts - 1);
    if (expert != nobody) ++replica_start_[static_cast<size_t>(expert) + 1];
  }
  for (size_t expert = 0; expert + 1 < replica_start_.size(); ++expert) {
    if (replica_start_[expert + 1] == 0)
      fail(Status::InvalidArgument, "placement: expert ", expert, " is on no rank");
    replica_start_[expert + 1] += replica_start_[expert];
  }
  replica_.assign(replica_start_.back(), 0);
  std::vector<uint32_t> next = replica_start_;
  plain_ = true;
  for (size_t position = 0; position < held_.size(); ++position) {
    if (held_[position] != nobody)
      replica_[next[static_cast<size_t>(held_[position])]++] = static_cast<int32_t>(position);
    plain_ &= held_[position] == static_cast<int32_t>(position);
  }
}

int Placement::position_near(int rank, int expert, uint64_t turn) const {
  for (uint32_t i = start(expert); i < start(expert + 1); ++i)
    if (rank_of(replica_[i]) == rank) return replica_[i];
  return position(expert, turn);
}

uint64_t Placement::digest() const {
  uint64_t hash = 14695981039346656037u;  // FNV-1a, a number at a time
  const auto add = [&](int32_t number) { hash = (hash ^ static_cast<uint32_t>(number)) * 1099511628211u; };
  for (const int32_t number : first_) add(number);
  for (const int32_t number : held_) add(number);
  return hash;
}

}  // namespace xccl
