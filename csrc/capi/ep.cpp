// Expert parallelism: the object, dispatch and combine. Not here: what a dispatch makes (result.cpp).
#include "capi/config.hpp"
#include "capi/handles.hpp"

using namespace xccl;
using namespace xccl::capi;

static_assert(XCCL_FLOAT32 == static_cast<int>(ElementType::float32) &&
              XCCL_FLOAT16 == static_cast<int>(ElementType::float16) &&
              XCCL_BFLOAT16 == static_cast<int>(ElementType::bfloat16));
static_assert(XCCL_LAYOUT_EXPERT == static_cast<int>(RowLayout::expert) &&
              XCCL_LAYOUT_TOKEN == static_cast<int>(RowLayout::token));
static_assert(XCCL_QUANT_NONE == static_cast<int>(Quant::none) &&
              XCCL_QUANT_INT8 == static_cast<int>(Quant::int8) &&
              XCCL_QUANT_FP8_E4M3 == static_cast<int>(Quant::fp8_e4m3));

namespace {

ExpertParallel& in(xccl_ep* ep) {
  require(ep, "ep");
  return *ep->ep;
}

void require_rows(const ExpertParallel& ep, const void* rows, int64_t count, const char* name) {
  require_memory(rows, count > 0 ? ep.shape().row_bytes() : 0, name, element_bytes(ep.shape().dtype));
}

void list_local_experts(xccl_ep& handle) {
  const Placement& placement = handle.ep->placement();
  const int rank = handle.ep->comm().rank();
  handle.local_experts.clear();
  for (int position = placement.first(rank); position < placement.first(rank + 1); ++position)
    handle.local_experts.push_back(placement.expert(position));
}

// NULL only where there are no tokens.
TopK topk_of(const void* experts, int dtype, const float* weights, int64_t tokens) {
  if (dtype != XCCL_INT32 && dtype != XCCL_INT64)
    fail(Status::InvalidArgument, "expert_dtype is ", dtype, ": expected XCCL_INT32 or XCCL_INT64");
  const bool wide = dtype == XCCL_INT64;
  require_memory(experts, tokens > 0, "topk_experts", wide ? alignof(int64_t) : alignof(int32_t));
  require_memory(weights, tokens > 0, "topk_weights", alignof(float));
  return {experts, wide, weights, tokens};
}

// A result of what call() dispatches.
template <class Call>
void make_result(xccl_ep* handle, xccl_result** result_out, Call call) {
  require(result_out, "result_out");
  auto result = std::make_unique<xccl_result>();
  result->ep = handle->ep;
  result->dispatched = call();
  result->routing.routing = result->dispatched->routing;
  *result_out = result.release();
}

// In one piece, or its first half, which has no result.
enum class Piece { whole, half };

xccl_status dispatch(const char* function, xccl_ep* handle, const void* x, const TopK& topk,
                     const xccl_routing* routing, double timeout, Piece piece, xccl_result** result_out) {
  return guarded(function, [&] {
    ExpertParallel& ep = in(handle);
    require_rows(ep, x, topk.tokens, "x");
    const auto reused = routing ? routing->routing : nullptr;
    if (piece == Piece::half) return ep.start_dispatch(x, topk, reused, seconds(timeout));
    make_result(handle, result_out, [&] { return ep.dispatch(x, topk, reused, seconds(timeout)); });
  });
}

xccl_status dispatch_new(const char* function, xccl_ep* ep, const void* x, int64_t tokens,
                         const void* topk_experts, int expert_dtype, const float* topk_weights,
                         double timeout, Piece piece, xccl_result** result_out) {
  TopK topk;
  const xccl_status checked =
      guarded(function, [&] { topk = topk_of(topk_experts, expert_dtype, topk_weights, tokens); });
  return checked != XCCL_OK ? checked : dispatch(function, ep, x, topk, nullptr, timeout, piece, result_out);
}

xccl_status dispatch_again(const char* function, xccl_ep* ep, const void* x, int64_t tokens,
                           const xccl_routing* routing, double timeout, Piece piece,
                           xccl_result** result_out) {
  const xccl_status checked = guarded(function, [&] { require(routing, "routing"); });
  TopK topk;
  topk.tokens = tokens;
  return checked != XCCL_OK ? checked : dispatch(function, ep, x, topk, routing, timeout, piece, result_out);
}

xccl_status combine(const char* function, xccl_ep* handle, const void* rows, const xccl_result* result,
                    const float* weights, double timeout, Piece piece, void* y_out) {
  return guarded(function, [&] {
    ExpertParallel& ep = in(handle);
    require(result, "result");
    require_rows(ep, rows, static_cast<int64_t>(result->dispatched->rows()), "rows");
    require_memory(weights, 0, "weights", alignof(float));
    require_rows(ep, y_out, result->routing.routing->tokens, "y_out");
    if (piece == Piece::half)
      ep.start_combine(rows, *result->dispatched, weights, y_out, seconds(timeout));
    else
      ep.combine(rows, *result->dispatched, weights, y_out, seconds(timeout));
  });
}

}  // namespace

xccl_status xccl_ep_create(xccl_comm* comm, const xccl_ep_config* config, double timeout, xccl_ep** ep_out) {
  return guarded(__func__, [&] {
    Comm& state = xccl::capi::in(comm);
    require(ep_out, "ep_out");
    const xccl_ep_config taken = take(config, "config", ep_defaults());
    const EpShape shape = shape_of(taken);
    auto handle = std::make_unique<xccl_ep>();
    handle->state = comm->state;
    handle->ep = std::make_shared<ExpertParallel>(
        state.communicator, shape, placement_of(taken, shape, state.communicator->size()), seconds(timeout));
    list_local_experts(*handle);
    const std::lock_guard lock(state.mutex);
    std::erase_if(state.eps, [](const auto& weak) { return weak.expired(); });
    state.eps.push_back(handle->ep);
    *ep_out = handle.release();
  });
}

const int* xccl_ep_local_experts(const xccl_ep* ep, size_t* count_out) {
  if (count_out) *count_out = ep ? ep->local_experts.size() : 0;
  return ep ? ep->local_experts.data() : nullptr;
}

xccl_status xccl_ep_set_placement(xccl_ep* ep, const int32_t* placement, size_t count, double timeout) {
  return guarded(__func__, [&] {
    require(ep, "ep");
    require_memory(placement, count, "placement", alignof(int32_t));
    in(ep).set_placement(std::vector<int32_t>(placement, placement + count), seconds(timeout));
    list_local_experts(*ep);
  });
}

xccl_status xccl_ep_expert_load(xccl_ep* ep, int reset, int64_t* load_out) {
  return guarded(__func__, [&] {
    require(load_out, "load_out");
    std::vector<int64_t>& load = in(ep).expert_load();
    std::copy(load.begin(), load.end(), load_out);
    if (reset) std::fill(load.begin(), load.end(), 0);
  });
}

xccl_status xccl_ep_close(xccl_ep* ep) {
  return guarded(__func__, [&] { in(ep).close(); });
}

void xccl_ep_destroy(xccl_ep* ep) {
  if (!ep) return;
  guarded(__func__, [&] { ep->ep->close(); });
  delete ep;
}

xccl_status xccl_ep_input_buffer(xccl_ep* ep, int64_t tokens, double timeout, void** buffer_out) {
  return guarded(__func__, [&] {
    require(buffer_out, "buffer_out");
    *buffer_out = in(ep).input_buffer(tokens, seconds(timeout));
  });
}

xccl_status xccl_ep_dispatch(xccl_ep* ep, const void* x, int64_t tokens, const void* topk_experts,
                             xccl_dtype expert_dtype, const float* topk_weights, double timeout,
                             xccl_result** result_out) {
  return dispatch_new(__func__, ep, x, tokens, topk_experts, number_of(expert_dtype), topk_weights, timeout,
                      Piece::whole, result_out);
}

xccl_status xccl_ep_dispatch_start(xccl_ep* ep, const void* x, int64_t tokens, const void* topk_experts,
                                   xccl_dtype expert_dtype, const float* topk_weights, double timeout) {
  return dispatch_new(__func__, ep, x, tokens, topk_experts, number_of(expert_dtype), topk_weights, timeout,
                      Piece::half, nullptr);
}

xccl_status xccl_ep_dispatch_again(xccl_ep* ep, const void* x, int64_t tokens, const xccl_routing* routing,
                                   double timeout, xccl_result** result_out) {
  return dispatch_again(__func__, ep, x, tokens, routing, timeout, Piece::whole, result_out);
}

xccl_status xccl_ep_dispatch_again_start(xccl_ep* ep, const void* x, int64_t tokens,
                                         const xccl_routing* routing, double timeout) {
  return dispatch_again(__func__, ep, x, tokens, routing, timeout, Piece::half, nullptr);
}

xccl_status xccl_ep_dispatch_finish(xccl_ep* handle, double timeout, xccl_result** result_out) {
  return guarded(__func__, [&] {
    ExpertParallel& ep = in(handle);
    make_result(handle, result_out, [&] { return ep.finish_dispatch(seconds(timeout)); });
  });
}

xccl_status xccl_ep_combine(xccl_ep* ep, const void* rows, xccl_result* result, const float* weights,
                            double timeout, void* y_out) {
  return combine(__func__, ep, rows, result, weights, timeout, Piece::whole, y_out);
}

xccl_status xccl_ep_combine_start(xccl_ep* ep, const void* rows, xccl_result* result, const float* weights,
                                  double timeout, void* y_out) {
  return combine(__func__, ep, rows, result, weights, timeout, Piece::half, y_out);
}

xccl_status xccl_ep_combine_finish(xccl_ep* ep, double timeout) {
  return guarded(__func__, [&] { in(ep).finish_combine(seconds(timeout)); });
}

xccl_status xccl_ep_can_finish(xccl_ep* ep) {
  return guarded(__func__, [&] { return in(ep).can_finish() ? XCCL_OK : XCCL_PENDING; });
}
