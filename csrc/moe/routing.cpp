#include "moe/routing.hpp"

#include "base/error.hpp"

namespace xccl {
namespace {

template <class Index>
void check(const Index* experts, int64_t pairs, int slots, int num_experts) {
  for (int64_t i = 0; i < pairs; ++i)
    if (experts[i] < -1 || experts[i] >= num_experts)
      fail(Status::InvalidArgument, "topk_idx[", i / slots, ", ", i % slots, "] is ",
           static_cast<int64_t>(experts[i]), ": expected -1 (no expert) to ", num_experts - 1);
}

// Counting sort. Stable, so within one expert the pairs keep the order (token, slot).
template <class Index>
void sort(const Index* experts, const TopK& topk, int slots, const Placement& placement, Routing& routing) {
  const int64_t all = topk.tokens * slots;
  check(experts, all, slots, placement.experts());
  auto& start = routing.position_start;
  start.assign(static_cast<size_t>(placement.experts()) + 1, 0);
  for (int64_t i = 0; i < all; ++i)
    if (experts[i] >= 0) ++start[static_cast<size_t>(placement.position(static_cast<int>(experts[i]))) + 1];
  for (size_t p = 1; p < start.size(); ++p) start[p] += start[p - 1];

  routing.pair_of_slot.resize(static_cast<size_t>(all));
  routing.token_of_pair.resize(start.back());
  routing.weight_of_pair.resize(start.back());
  std::vector<uint32_t> next(start.begin(), start.end() - 1);
  for (int64_t i = 0; i < all; ++i) {
    uint32_t& pair = routing.pair_of_slot[static_cast<size_t>(i)];
    pair = experts[i] < 0 ? no_pair
                          : next[static_cast<size_t>(placement.position(static_cast<int>(experts[i])))]++;
    if (pair == no_pair) continue;
    routing.token_of_pair[pair] = static_cast<int32_t>(i / slots);
    routing.weight_of_pair[pair] = topk.weights[i];
  }
}

}  // namespace

void route(const TopK& topk, int slots, const Placement& placement, Routing& routing) {
  routing.tokens = topk.tokens;
  routing.weights.assign(topk.weights, topk.weights + topk.tokens * slots);
  if (topk.wide)
    sort(static_cast<const int64_t*>(topk.experts), topk, slots, placement, routing);
  else
    sort(static_cast<const int32_t*>(topk.experts), topk, slots, placement, routing);
}

}  // namespace xccl
