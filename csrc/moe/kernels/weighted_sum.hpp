// The row kernel of combine: y = sum of w_k * row_k, under the arithmetic contract of DESIGN (docs/architecture.md):
// in the order given, acc = round32(w*row) for the first row, then acc = round32(acc + round32(w*row)); no fused
// multiply-add; one rounding to nearest even at the end; denormals kept; every NaN is the canonical one.
// So all instruction sets give the same bits, and a test holds them to it.
// One body (weighted_sum_body.hpp), compiled once per instruction set; chosen at run time (select.cpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe/row_type.hpp"

namespace xccl {

// y: `hidden` elements; rows: `count` pointers to as many elements each; count 0 gives zeros.
using WeightedSum = void (*)(void* y, const void* const* rows, const float* weights, int count,
                             uint64_t hidden);

// One instruction set's kernels.
struct Kernels {
  const char* name;
  WeightedSum float32, float16, bfloat16;

  WeightedSum weighted_sum(RowType type) const {
    return type == RowType::float32 ? float32 : type == RowType::float16 ? float16 : bfloat16;
  }
};

// Those compiled in that this processor can run, best first.
std::vector<const Kernels*> usable_kernels();

// The best, or the one named by XCCL_KERNELS. InvalidArgument when that one cannot run here.
const Kernels& select_kernels(const std::string& name);

// Rounding to nearest, denormals kept, whatever the program around us has set; restored at the end.
class FloatEnvironment {
 public:
  FloatEnvironment();
  ~FloatEnvironment();
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  alignas(16) unsigned char saved_[64];
};

extern const Kernels generic_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace xccl
