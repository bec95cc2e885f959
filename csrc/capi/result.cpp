// What a dispatch makes: rows and routing, and handing them back. Not here: dispatch and combine themselves (ep.cpp).
#include "capi/handles.hpp"

using namespace xccl;
using namespace xccl::capi;

void* xccl_result_x(const xccl_result* result) {
  return result && result->dispatched->lease ? result->dispatched->lease->slot().x.base() : nullptr;
}

float* xccl_result_scales(const xccl_result* result) {
  return result ? result->dispatched->scales() : nullptr;
}

int64_t xccl_result_row_count(const xccl_result* result) {
  return result ? xccl_routing_row_count(&result->routing) : 0;
}

int64_t xccl_result_x_count(const xccl_result* result) {
  return result ? static_cast<int64_t>(result->dispatched->x_rows()) : 0;
}

const int32_t* xccl_result_index(const xccl_result* result) {
  if (!result || result->dispatched->routing->token_row.empty()) return nullptr;
  return result->dispatched->routing->token_row.data();
}

const int64_t* xccl_result_counts(const xccl_result* result) {
  return result ? xccl_routing_counts(&result->routing) : nullptr;
}

xccl_status xccl_result_output_buffer(xccl_result* result, double timeout, void** buffer_out) {
  return guarded(__func__, [&] {
    require(result, "result");
    require(buffer_out, "buffer_out");
    *buffer_out = result->ep->output_buffer(*result->dispatched, seconds(timeout));
  });
}

void xccl_result_release(xccl_result* result) {
  if (result) result->dispatched->lease.reset();
}

void xccl_result_destroy(xccl_result* result) { delete result; }

const xccl_routing* xccl_result_routing(const xccl_result* result) {
  return result ? &result->routing : nullptr;
}

xccl_status xccl_routing_copy(const xccl_routing* routing, xccl_routing** copy_out) {
  return guarded(__func__, [&] {
    require(routing, "routing");
    require(copy_out, "copy_out");
    *copy_out = new xccl_routing(*routing);
  });
}

void xccl_routing_destroy(xccl_routing* copy) { delete copy; }

int64_t xccl_routing_token_count(const xccl_routing* routing) {
  return routing ? routing->routing->tokens : 0;
}

int64_t xccl_routing_row_count(const xccl_routing* routing) {
  return routing ? static_cast<int64_t>(routing->routing->rows()) : 0;
}

const int64_t* xccl_routing_counts(const xccl_routing* routing) {
  return routing ? routing->routing->counts.data() : nullptr;
}

const int32_t* xccl_routing_src_rank(const xccl_routing* routing) {
  return routing ? routing->routing->src_rank.data() : nullptr;
}

const int32_t* xccl_routing_src_token(const xccl_routing* routing) {
  return routing ? routing->routing->src_token.data() : nullptr;
}

const float* xccl_routing_weights(const xccl_routing* routing) {
  return routing ? routing->routing->row_weight.data() : nullptr;
}
