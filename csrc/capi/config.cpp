#include "capi/config.hpp"

#include <unistd.h>

#include <random>

#include "group/launch_environment.hpp"

namespace xccl::capi {
namespace {

// A job that nobody else is to meet.
std::string private_name() {
  std::random_device random;
  return text("alone-", getpid(), "-", random(), "-", random());
}

JobSpec said_by_launcher(const std::string& job) {
  const std::optional<LaunchInfo> info = detect_launch(process_environment());
  if (!info) return {job.empty() ? private_name() : job, 0, 1};
  require_single_host(*info);
  return {job.empty() ? info->job : job, info->rank, info->size, job.empty()};
}

}  // namespace

xccl_comm_config comm_defaults() noexcept {
  xccl_comm_config config{};
  config.rank = config.rank_count = config.progress_thread = -1;
  return config;
}

xccl_ep_config ep_defaults() noexcept {
  xccl_ep_config config{};
  config.results = 2;
  config.dtype = XCCL_BFLOAT16;
  config.layout = XCCL_LAYOUT_EXPERT;
  return config;
}

xccl_plan_load plan_defaults() noexcept {
  xccl_plan_load load{};
  load.tokens = load.rows = -1;
  return load;
}

JobSpec identify(const xccl_comm_config& config) {
  const std::string job = config.job ? config.job : "";
  if (config.rank == -1 && config.rank_count == -1) return said_by_launcher(job);
  if (config.rank == -1 || config.rank_count == -1)
    fail(Status::InvalidArgument,
         "config->rank and config->rank_count belong together: give both, or neither under a launcher");
  if (job.empty() && config.rank_count > 1)
    fail(Status::InvalidArgument,
         "config->job is missing: give a name that all ranks of this job, and no other job, use");
  return {job.empty() ? private_name() : job, config.rank, config.rank_count};
}

EpShape shape_of(const xccl_ep_config& config) {
  EpShape shape;
  shape.num_experts = config.num_experts;
  shape.hidden = config.hidden;
  shape.max_tokens = config.max_tokens;
  shape.topk = config.topk;
  shape.results = config.results;
  shape.layout = static_cast<RowLayout>(number_of(config.layout));
  shape.dispatch_quant = static_cast<Quant>(number_of(config.dispatch_quant));
  shape.combine_quant = static_cast<Quant>(number_of(config.combine_quant));
  if (config.shared_count < 0 || config.shared_count > 1024)
    fail(Status::InvalidArgument, "config->shared_count is ", config.shared_count, ": expected 0 to 1024");
  require_memory(config.shared_experts, config.shared_count > 0, "config->shared_experts", alignof(int32_t));
  if (config.shared_count)
    shape.shared_experts.assign(config.shared_experts, config.shared_experts + config.shared_count);
  const int dtype = number_of(config.dtype);
  switch (dtype) {
    case XCCL_FLOAT32:
    case XCCL_FLOAT16:
    case XCCL_BFLOAT16:
      shape.dtype = static_cast<ElementType>(dtype);
      return shape;
  }
  fail(Status::InvalidArgument, "config->dtype is ", dtype,
       ": expected XCCL_FLOAT32, XCCL_FLOAT16 or XCCL_BFLOAT16");
}

Placement placement_of(const xccl_ep_config& config, const EpShape& shape, int ranks) {
  check(shape, ranks);
  if (!config.placement && !config.slot_counts) return even_placement(shape, ranks);
  require_memory(config.slot_counts, 1, "config->slot_counts", alignof(int32_t));
  const std::vector<int32_t> slots(config.slot_counts, config.slot_counts + ranks);
  size_t total = 0;
  for (const int32_t count : slots) total += count > 0 ? static_cast<size_t>(count) : 0;
  require_memory(config.placement, total, "config->placement", alignof(int32_t));
  return Placement(static_cast<int>(shape.num_experts), slots,
                   std::vector<int32_t>(config.placement, config.placement + total));
}

}  // namespace xccl::capi

using namespace xccl::capi;

void xccl_comm_config_init(xccl_comm_config* config, size_t size) {
  init_config(config, size, comm_defaults());
}
void xccl_ep_config_init(xccl_ep_config* config, size_t size) { init_config(config, size, ep_defaults()); }
void xccl_plan_load_init(xccl_plan_load* load, size_t size) { init_config(load, size, plan_defaults()); }
