#include "moe/routing.hpp"

#include "base/error.hpp"

namespace xccl {
namespace {

constexpr int32_t nowhere = -1;

// The position of each pair's expert. Every expert is read once, then checked, then used: the caller's array could
// change meanwhile.
template <class Index>
void look_up(const Index* experts, int slots, const Placement& placement, std::vector<int32_t>& positions) {
  for (size_t i = 0; i < positions.size(); ++i) {
    const Index expert = experts[i];
    if (expert < -1 || expert >= placement.experts())
      fail(Status::InvalidArgument, "topk_idx[", i / static_cast<size_t>(slots), ", ",
           i % static_cast<size_t>(slots), "] is ", static_cast<int64_t>(expert),
           ": expected -1 (no expert) to ", placement.experts() - 1);
    positions[i] = expert < 0 ? nowhere : placement.position(static_cast<int>(expert));
  }
}

}  // namespace

// Counting sort. Stable, so within one expert the pairs keep the order (token, slot).
void route(const TopK& topk, int slots, const Placement& placement, Routing& routing) {
  const auto all = static_cast<size_t>(topk.tokens * slots);
  std::vector<int32_t> positions(all);
  if (topk.wide)
    look_up(static_cast<const int64_t*>(topk.experts), slots, placement, positions);
  else
    look_up(static_cast<const int32_t*>(topk.experts), slots, placement, positions);

  routing.tokens = topk.tokens;
  routing.weights.assign(topk.weights, topk.weights + all);
  auto& start = routing.position_start;
  start.assign(static_cast<size_t>(placement.experts()) + 1, 0);
  for (const int32_t position : positions)
    if (position != nowhere) ++start[static_cast<size_t>(position) + 1];
  for (size_t p = 1; p < start.size(); ++p) start[p] += start[p - 1];

  routing.pair_of_slot.resize(all);
  routing.token_of_pair.resize(start.back());
  routing.weight_of_pair.resize(start.back());
  std::vector<uint32_t> next(start.begin(), start.end() - 1);
  for (size_t i = 0; i < all; ++i) {
    uint32_t& pair = routing.pair_of_slot[i];
    pair = positions[i] == nowhere ? no_pair : next[static_cast<size_t>(positions[i])]++;
    if (pair == no_pair) continue;
    routing.token_of_pair[pair] = static_cast<int32_t>(i / static_cast<size_t>(slots));
    routing.weight_of_pair[pair] = routing.weights[i];
  }
}

}  // namespace xccl
