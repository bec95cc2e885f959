#include "moe/routing.hpp"

#include "base/error.hpp"

namespace xccl {
namespace {

struct Route {
  const TopK& topk;
  const int chosen;
  const std::vector<int32_t>& shared;
  const Placement& placement;
  const int source;
  Routing& routing;

  // `place` tells the position of an expert for a token. Every expert is read once, then checked, then used: the
  // caller's array could change meanwhile.
  template <class Index, class Place>
  void count(Place place) {
    const Index* named = static_cast<const Index*>(topk.experts);
    int32_t* position = routing.position_of_slot.data();
    uint32_t* before = routing.place_of_slot.data();
    uint32_t* const so_far = &routing.position_start[1];
    for (int64_t token = 0; token < topk.tokens; ++token) {
      for (int slot = 0; slot < chosen; ++slot, ++position, ++before) {
        const Index expert = *named++;
        if (expert < -1 || expert >= placement.experts())
          fail(Status::InvalidArgument, "token ", token, " names expert ", static_cast<int64_t>(expert),
               " in slot ", slot, ": expected -1 (no expert) to ", placement.experts() - 1);
        *position = expert < 0 ? nowhere : place(static_cast<int>(expert), token);
        if (*position != nowhere) *before = so_far[*position]++;
      }
      for (const int32_t expert : shared) {
        *position = placement.position_near(source, expert, turn(token));
        *before++ = so_far[*position++]++;
      }
    }
  }

  // Every rank starts with another replica: else those of few tokens would all take the first.
  uint64_t turn(int64_t token) const { return static_cast<uint64_t>(source) + static_cast<uint64_t>(token); }

  template <class Index>
  void count() {
    if (placement.plain())
      count<Index>([](int expert, int64_t) { return expert; });
    else
      count<Index>([this](int expert, int64_t token) { return placement.position(expert, turn(token)); });
  }
};

}  // namespace

void route(const TopK& topk, int chosen, const std::vector<int32_t>& shared, const Placement& placement,
           int source, Routing& routing) {
  const auto all = static_cast<size_t>(topk.tokens) * (static_cast<size_t>(chosen) + shared.size());
  routing.tokens = topk.tokens;
  routing.position_of_slot.resize(all);
  routing.place_of_slot.resize(all);
  auto& start = routing.position_start;
  start.assign(static_cast<size_t>(placement.positions()) + 1, 0);
  Route call{topk, chosen, shared, placement, source, routing};
  topk.wide ? call.count<int64_t>() : call.count<int32_t>();
  for (size_t p = 1; p < start.size(); ++p) start[p] += start[p - 1];
  routing.weights.assign(topk.weights, topk.weights + all);
}

}  // namespace xccl
