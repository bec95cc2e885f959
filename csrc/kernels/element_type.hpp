// The element types that XCCL computes with, in one list.
// Not here: converting them (element_body.hpp).
#pragma once

#include <cstdint>

namespace xccl {

enum class ElementType : uint32_t { float32 = 1, float16 = 2, bfloat16 = 3, int64 = 4 };

constexpr uint64_t element_bytes(ElementType type) {
  return type == ElementType::int64 ? 8 : type == ElementType::float32 ? 4 : 2;
}

constexpr const char* element_type_name(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return "float32";
    case ElementType::float16:
      return "float16";
    case ElementType::bfloat16:
      return "bfloat16";
    case ElementType::int64:
      return "int64";
  }
  return "unknown";
}

}  // namespace xccl
