#include "moe/routing.hpp"

#include "base/error.hpp"

namespace xccl {
namespace {

// Every expert is read once, then checked, then used: the caller's array could change meanwhile.
template <class Index>
void count(const Index* experts, int slots, const Placement& placement, Routing& routing) {
  uint32_t* const so_far = &routing.position_start[1];
  for (size_t i = 0; i < routing.position_of_slot.size(); ++i) {
    const Index expert = experts[i];
    if (expert < -1 || expert >= placement.experts())
      fail(Status::InvalidArgument, "token ", i / static_cast<size_t>(slots), " names expert ",
           static_cast<int64_t>(expert), " in slot ", i % static_cast<size_t>(slots),
           ": expected -1 (no expert) to ", placement.experts() - 1);
    const int32_t position = expert < 0 ? nowhere : placement.position(static_cast<int>(expert));
    routing.position_of_slot[i] = position;
    if (position != nowhere) routing.place_of_slot[i] = so_far[position]++;
  }
}

}  // namespace

void route(const TopK& topk, int slots, const Placement& placement, Routing& routing) {
  const auto all = static_cast<size_t>(topk.tokens * slots);
  routing.tokens = topk.tokens;
  routing.position_of_slot.resize(all);
  routing.place_of_slot.resize(all);
  auto& start = routing.position_start;
  start.assign(static_cast<size_t>(placement.experts()) + 1, 0);
  if (topk.wide)
    count(static_cast<const int64_t*>(topk.experts), slots, placement, routing);
  else
    count(static_cast<const int32_t*>(topk.experts), slots, placement, routing);
  for (size_t p = 1; p < start.size(); ++p) start[p] += start[p - 1];
  routing.weights.assign(topk.weights, topk.weights + all);
}

}  // namespace xccl
