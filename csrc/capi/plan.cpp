// The planner: what memory an xccl_ep takes. Not here: the numbers (moe/plan.hpp).
#include "capi/config.hpp"
#include "capi/handles.hpp"

using namespace xccl;
using namespace xccl::capi;

namespace {

void require_range(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  if (value < lowest || value > highest)
    fail(Status::InvalidArgument, name, "=", value, ": expected ", lowest, " to ", highest);
}

PlanLoad load_of(const xccl_plan_load& load, const EpShape& shape, const Placement& placement) {
  if (load.tokens != -1) require_range("load->tokens", load.tokens, 0, shape.max_tokens);
  if (load.rows != -1) require_range("load->rows", load.rows, 0, INT32_MAX);
  const auto tokens = static_cast<uint64_t>(load.tokens == -1 ? shape.max_tokens : load.tokens);
  const uint64_t rows =
      load.rows == -1 ? even_rows(shape, placement, load.rank, tokens) : static_cast<uint64_t>(load.rows);
  return {tokens, rows, load.in_place != 0};
}

}  // namespace

xccl_status xccl_plan_create(const xccl_ep_config* config, const xccl_plan_load* given,
                             xccl_plan** plan_out) {
  return guarded(__func__, [&] {
    require(plan_out, "plan_out");
    const xccl_ep_config taken = take(config, "config", ep_defaults());
    const EpShape shape = shape_of(taken);
    const xccl_plan_load load = take(given, "load", plan_defaults());
    require_range("load->rank_count", load.rank_count, 1, INT32_MAX);
    require_range("load->rank", load.rank, 0, load.rank_count - 1);
    check(shape, load.rank_count);
    const uint64_t annex = PointToPoint::annex_bytes(load.rank_count);
    require_joinable(load.rank_count, annex);
    const Placement placement = placement_of(taken, shape, load.rank_count);
    auto made = std::make_unique<xccl_plan>();
    made->lines = plan(shape, placement, load.rank, load_of(load, shape, placement), annex);
    for (const PlanLine& line : made->lines)
      made->shown.push_back({line.what.c_str(), line.committed, line.reserved, line.shrink.c_str()});
    *plan_out = made.release();
  });
}

const xccl_plan_line* xccl_plan_lines(const xccl_plan* plan, size_t* count_out) {
  if (count_out) *count_out = plan ? plan->shown.size() : 0;
  return plan ? plan->shown.data() : nullptr;
}

void xccl_plan_destroy(xccl_plan* plan) { delete plan; }
