// The element types that rows may have: those of kernels/element_type.hpp that are floating-point numbers.
#pragma once

#include "kernels/element_type.hpp"

namespace xccl {

using RowType = ElementType;

constexpr bool is_row_type(RowType type) {
  return type == RowType::float32 || type == RowType::float16 || type == RowType::bfloat16;
}

}  // namespace xccl
