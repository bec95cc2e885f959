// The row kernel of combine: y = sum of w_k * row_k. Included by kernels_body.hpp only.
#pragma once

#include <cstring>

#include "kernels/element_body.hpp"
#include "kernels/kernels.hpp"

namespace xccl {
namespace {

template <class Type>
void weighted_sum(void* y, const void* const* rows, const float* weights, int count, uint64_t hidden) {
  using Sum = typename Type::Accumulator;
  if (count == 0) {
    std::memset(y, 0, hidden * sizeof(typename Type::Bits));
    return;
  }
  fold_rows<Type>(
      y, rows, count, hidden, [=](Sum row) { return weights[0] * row; },
      [=](Sum sum, Sum row, int k) { return sum + weights[k] * row; });
}

}  // namespace
}  // namespace xccl
