// Checks of arguments that several collectives share. InvalidArgument says what is wrong; nothing has been sent then.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.hpp"
#include "kernels/kernels.hpp"

namespace xccl {

constexpr uint64_t beyond_memory = uint64_t{1} << 48;

// count * each, both in bytes or elements of so many bytes.
inline uint64_t checked_bytes(const char* what, uint64_t count, uint64_t each) {
  uint64_t bytes;
  if (__builtin_mul_overflow(count, each, &bytes) || bytes > beyond_memory)
    fail(Status::InvalidArgument, count, " ", what, " of ", each, " bytes are more than any memory");
  return bytes;
}

inline uint64_t bytes_of_elements(uint64_t count, ElementType type) {
  if (type < ElementType::float32 || type > ElementType::int64)
    fail(Status::InvalidArgument, "dtype ", static_cast<uint32_t>(type),
         ": expected float32, float16, bfloat16 or int64");
  return checked_bytes("elements", count, element_bytes(type));
}

inline void require_reduce_op(ReduceOp op) {
  if (op != ReduceOp::sum && op != ReduceOp::max)
    fail(Status::InvalidArgument, "op ", static_cast<uint32_t>(op), ": expected sum or max");
}

// What is written may not lie in what others still need; `except` is the one place where it may.
inline void require_apart(const void* input, uint64_t input_bytes, const void* out, uint64_t out_bytes,
                          const void* except = nullptr, const void* except_out = nullptr) {
  const auto a = reinterpret_cast<uintptr_t>(input), b = reinterpret_cast<uintptr_t>(out);
  if (input_bytes == 0 || out_bytes == 0 || a + input_bytes <= b || b + out_bytes <= a) return;
  if (except && except == except_out) return;
  fail(Status::InvalidArgument, "the output overlaps the input; give other memory");
}

}  // namespace xccl
