#include "moe/plan.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "group/communicator.hpp"
#include "group/scratch.hpp"

namespace xccl {
namespace {
uint64_t control_lines(int ranks, uint64_t annex_bytes) {
  return Communicator::control_bytes(ranks, annex_bytes) + Board::bytes(ranks);
}
}  // namespace

uint64_t even_rows(const EpShape& shape, const Placement& placement, int rank, uint64_t tokens) {
  std::vector<bool> shared(static_cast<size_t>(shape.num_experts));
  for (const int32_t expert : shape.shared_experts) shared[static_cast<size_t>(expert)] = true;
  const auto chosen =
      static_cast<double>(shape.num_experts) - static_cast<double>(shape.shared_experts.size());
  const double all = static_cast<double>(placement.ranks()) * static_cast<double>(tokens);
  double rows = 0;
  for (int position = placement.first(rank); position < placement.first(rank + 1); ++position) {
    const int expert = placement.expert(position);
    if (expert == Placement::nobody) continue;
    const double each = all / placement.replicas(expert);
    rows += shared[static_cast<size_t>(expert)] ? each : each * static_cast<double>(shape.topk) / chosen;
  }
  return static_cast<uint64_t>(std::ceil(rows - 1e-6));  // less is rounding
}

void require_joinable(int ranks, uint64_t annex_bytes) {
  if (control_lines(ranks, annex_bytes) > control_segment_bytes) World::fail_without_lines();
}

namespace {
// How many tokens the rows on one rank are of, if each of a token's experts is there with the same probability.
uint64_t tokens_of_rows(const EpShape& shape, int ranks, const PlanLoad& load) {
  const double tokens = static_cast<double>(ranks) * static_cast<double>(load.tokens),
               topk = static_cast<double>(shape.slots());
  if (tokens == 0) return 0;
  const double here = std::min(1.0, static_cast<double>(load.rows) / (tokens * topk));
  return static_cast<uint64_t>(std::ceil(tokens * (1 - std::pow(1 - here, topk))));
}
}  // namespace

std::vector<PlanLine> plan(const EpShape& shape, const Placement& placement, int rank, const PlanLoad& load,
                           uint64_t annex_bytes) {
  const int ranks = placement.ranks();
  check(shape, ranks);
  const EpLayout layout(shape, placement, rank);
  const auto pages = [](uint64_t bytes) { return round_up(bytes, page_granule); };
  const uint64_t slots = load.tokens * static_cast<uint64_t>(shape.slots());
  const auto turns = static_cast<uint64_t>(record_depth), results = static_cast<uint64_t>(shape.results);
  const RowFormat dispatched = shape.dispatch_format(), combined = shape.combine_format();
  if (load.in_place && dispatched.quantised())
    fail(Status::InvalidArgument, "in_place: d.x is quantised, so combine cannot be given it");
  const uint64_t x_rows = shape.layout == RowLayout::token ? tokens_of_rows(shape, ranks, load) : load.rows;
  const uint64_t route = slots * sizeof(RoutedRow);
  require_joinable(ranks, annex_bytes);
  std::vector<PlanLine> out = {
      {"control segment: header, flags, records", pages(control_lines(ranks, annex_bytes)),
       control_segment_bytes, "fewer ranks"},
      {"scratch of collectives, if they are small", scratch_small_bytes, scratch_bytes, ""},
      // Who quantises needs no input buffers, and so is not counted with them.
      {dispatched.quantised() ? "tokens to dispatch, quantised, 2 slots"
                              : "tokens to dispatch (input buffers or staging), 2 slots",
       turns * pages(dispatched.bytes(load.tokens)),
       turns * (pages(layout.input[0].bytes) + pages(layout.staging[0].bytes)), "max_tokens, hidden, dtype"},
      {"route lists, 2 slots", turns * pages(route), turns * pages(layout.route[0].bytes),
       "max_tokens, topk"},
      {"row bases for combine, 2 slots", turns * pages(layout.bases[0].bytes),
       turns * pages(layout.bases[0].bytes), "num_experts"},
      {text("rows received, ", results, " results"), results * pages(dispatched.bytes(x_rows)),
       results * pages(layout.x[0].bytes), "max_tokens, topk, results"},
      {text("experts' results (output buffers), ", results, " results"),
       load.in_place ? 0 : results * pages(load.rows * shape.row_bytes()),
       results * pages(layout.out[0].bytes), "max_tokens, topk, results; combine in place"},
  };
  if (combined.quantised())
    out.push_back({text("experts' results, quantised, ", results, " results"),
                   results * pages(combined.bytes(load.rows)), results * pages(layout.quantised[0].bytes),
                   "max_tokens, topk, results"});
  return out;
}

}  // namespace xccl
