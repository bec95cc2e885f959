// The row kernel of combine: y = sum of w_k * row_k. Plain loops over fixed blocks, written so that compilers turn
// every one of them into vectors. Included by kernels_body.hpp only.
#pragma once

#include <cstring>

#include "kernels/element_body.hpp"
#include "kernels/kernels.hpp"

namespace xccl {
namespace {

template <class Type>
inline void sum_block(unsigned char* y, const unsigned char* const* rows, const float* weights, int count,
                      uint64_t first, uint64_t elements) {
  using Bits = typename Type::Bits;
  float sum[block];
  Bits in[block];
  for (int k = 0; k < count; ++k) {
    const float weight = weights[k];
    std::memcpy(in, rows[k] + first * sizeof(Bits), elements * sizeof(Bits));
    if (k == 0)
      for (uint64_t i = 0; i < elements; ++i) sum[i] = weight * Type::load(in[i]);
    else
      for (uint64_t i = 0; i < elements; ++i) sum[i] = sum[i] + weight * Type::load(in[i]);
  }
  for (uint64_t i = 0; i < elements; ++i) in[i] = Type::store(sum[i]);
  std::memcpy(y + first * sizeof(Bits), in, elements * sizeof(Bits));
}

template <class Type>
void weighted_sum(void* y, const void* const* rows, const float* weights, int count, uint64_t hidden) {
  auto* out = static_cast<unsigned char*>(y);
  if (count == 0) {
    std::memset(out, 0, hidden * sizeof(typename Type::Bits));
    return;
  }
  const auto* in = reinterpret_cast<const unsigned char* const*>(rows);
  uint64_t first = 0;
  for (; first + block <= hidden; first += block) sum_block<Type>(out, in, weights, count, first, block);
  if (first < hidden) sum_block<Type>(out, in, weights, count, first, hidden - first);
}

}  // namespace
}  // namespace xccl
