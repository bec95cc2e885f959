// How rows lie where others pull them: as they are, or quantised, a byte an element and float32 scales beside.
// ExpertParallel has one format for what dispatch moves and one for what combine moves. Used in this folder and the
// bindings. Not here: what a code and a scale are (docs/quantisation.md), the loops (csrc/kernels).
//
// n rows lie one after the other without gaps, then, from the next cache line on, the scales of the first, of the
// second, and so on:
//
//   ┌───────┬───────┬─────┬─────────┬─────────────────┬──────────┬──────────┬─────┐
//   │ row 0 │ row 1 │ ... │ row n-1 │ to 64 bytes     │ scales 0 │ scales 1 │ ... │
//   └───────┴───────┴─────┴─────────┴─────────────────┴──────────┴──────────┴─────┘
#pragma once

#include <cstddef>

#include "kernels/kernels.hpp"
#include "memory/control_layout.hpp"
#include "memory/range_allocator.hpp"
#include "moe/row_type.hpp"

namespace xccl {

struct RowFormat {
  RowType type = RowType::float32;  // of the numbers that a row stands for
  Quant quant = Quant::none;
  uint64_t hidden = 0;

  bool quantised() const { return quant != Quant::none; }
  // Of one row: its elements, and what belongs to them.
  uint64_t row_bytes() const { return hidden * (quantised() ? 1 : element_bytes(type)); }
  uint64_t scale_count() const { return scales_of_row(quant, hidden); }
  uint64_t scale_bytes() const { return scale_count() * sizeof(float); }
  // Of `rows` rows: where their scales begin, and all of it.
  uint64_t scales_at(uint64_t rows) const { return round_up(rows * row_bytes(), cache_line); }
  uint64_t bytes(uint64_t rows) const {
    return quantised() ? scales_at(rows) + rows * scale_bytes() : rows * row_bytes();
  }
};

// Writes `rows` rows of the format's type in the format, which is quantised. Past the caches, if they are too many to
// stay there: then finish_streams() has been called as well.
void quantise_rows(const Kernels& kernels, const RowFormat& format, const std::byte* from, uint64_t rows,
                   std::byte* to, bool past_caches);

// Sums rows of a format, whichever it is.
class RowSum {
 public:
  RowSum(const Kernels& kernels, const RowFormat& format)
      : hidden_(format.hidden),
        plain_(format.quantised() ? nullptr : kernels.weighted_sum(format.type)),
        dequantised_(format.quantised() ? kernels.dequantised_sum(format.type, format.quant) : nullptr) {}

  // `scales` is not looked at where rows have none.
  void operator()(void* y, const void* const* rows, const float* const* scales, const float* weights,
                  int count) const {
    plain_ ? plain_(y, rows, weights, count, hidden_)
           : dequantised_(y, rows, scales, weights, count, hidden_);
  }

 private:
  uint64_t hidden_;
  WeightedSum plain_;
  DequantisedSum dequantised_;
};

}  // namespace xccl
