// The kernels: loops over elements, compiled once per instruction set from one body (weighted_sum_body.hpp,
// reduce_body.hpp, quantise_body.hpp, dequantised_sum_body.hpp) and chosen at run time (select.cpp). Called by moe/ and
// collective/.
//
// The arithmetic contract, which makes all instruction sets give the same bits (a test holds them to it): float16 and
// bfloat16 widen exactly to float32; terms are added in the order given, each step rounded to float32; no fused
// multiply-add; one rounding to nearest even at the end; denormals kept; every NaN is the canonical one.
//   weighted sum  acc = round32(w*row) for the first row, then acc = round32(acc + round32(w*row))
//   dequantised   the same with row = round32(scale * code)
//   sum           acc = the first row, then acc = round32(acc + row); int64 wraps around
//   max           the largest; NaN if any is NaN; +0 above -0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/element_type.hpp"
#include "kernels/quantisation.hpp"

namespace xccl {

enum class ReduceOp : uint32_t { sum = 1, max = 2 };

constexpr const char* reduce_op_name(ReduceOp op) { return op == ReduceOp::sum ? "sum" : "max"; }

// y: `hidden` elements; rows: `count` pointers to as many elements each; count 0 gives zeros.
using WeightedSum = void (*)(void* y, const void* const* rows, const float* weights, int count,
                             uint64_t hidden);

// out: `elements` elements; rows: `count` > 0 pointers to as many each, of which one may be `out` itself.
using Reduce = void (*)(void* out, const void* const* rows, int count, uint64_t elements);

// row: `hidden` elements; values: as many bytes; scales: scales_of_row(). docs/quantisation.md says what they get.
using Quantise = void (*)(const void* row, uint64_t hidden, void* values, float* scales);

// The weighted sum of rows as Quantise makes them: for each its values and its scales.
using DequantisedSum = void (*)(void* y, const void* const* values, const float* const* scales,
                                const float* weights, int count, uint64_t hidden);

// One instruction set's kernels.
struct Kernels {
  const char* name;
  WeightedSum float32, float16, bfloat16;
  Reduce reductions[2][4];    // by operation and element type, in the order of their enumerations
  Quantise quantisers[2][3];  // by quantisation but none, and the type of rows
  DequantisedSum dequantised_sums[2][3];

  WeightedSum weighted_sum(ElementType type) const {
    return type == ElementType::float32 ? float32 : type == ElementType::float16 ? float16 : bfloat16;
  }
  Reduce reduce(ElementType type, ReduceOp op) const {
    return reductions[static_cast<size_t>(op) - 1][static_cast<size_t>(type) - 1];
  }
  Quantise quantise(ElementType type, Quant quant) const {
    return quantisers[static_cast<size_t>(quant) - 1][static_cast<size_t>(type) - 1];
  }
  DequantisedSum dequantised_sum(ElementType type, Quant quant) const {
    return dequantised_sums[static_cast<size_t>(quant) - 1][static_cast<size_t>(type) - 1];
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
