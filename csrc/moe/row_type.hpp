// The element types of rows, in one list.
// Not here: converting them (kernels/).
#pragma once

#include <cstdint>

namespace xccl {

enum class RowType : uint32_t { float32 = 1, float16 = 2, bfloat16 = 3 };

constexpr uint64_t element_bytes(RowType type) { return type == RowType::float32 ? 4 : 2; }

constexpr const char* row_type_name(RowType type) {
  switch (type) {
    case RowType::float32:
      return "float32";
    case RowType::float16:
      return "float16";
    case RowType::bfloat16:
      return "bfloat16";
  }
  return "unknown";
}

}  // namespace xccl
