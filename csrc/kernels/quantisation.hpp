// Rows in one byte an element: which kinds there are, and how many scales each has. docs/quantisation.md is the contract.
// Not here: the loops (quantise_body.hpp, dequantised_sum_body.hpp), where such rows lie (moe/row_format.hpp).
#pragma once

#include <cstdint>

namespace xccl {

enum class Quant : uint32_t {
  none = 0,      // rows as they are
  int8 = 1,      // whole numbers from -127 to 127, one scale for a row
  fp8_e4m3 = 2,  // float8_e4m3fn, one scale for each block of quant_block elements; the last may be shorter
};

constexpr uint64_t quant_block = 128;

constexpr const char* quant_name(Quant quant) {
  switch (quant) {
    case Quant::none:
      return "None";
    case Quant::int8:
      return "int8";
    case Quant::fp8_e4m3:
      return "fp8_e4m3";
  }
  return "unknown";
}

// float32 numbers that belong to a row.
constexpr uint64_t scales_of_row(Quant quant, uint64_t hidden) {
  return quant == Quant::none ? 0 : quant == Quant::int8 ? 1 : (hidden + quant_block - 1) / quant_block;
}

}  // namespace xccl
