// The row kernel of a quantised combine: y = sum of w_k * (scale_k * code_k). Included by kernels_body.hpp only.
#pragma once

#include <cstring>

#include "kernels/code_body.hpp"
#include "kernels/kernels.hpp"

namespace xccl {
namespace {

// Sums of `step` elements, in the order in which their codes lie in words: [j] has the elements j, 4 + j, 8 + j, ...
// Only when they are stored do they get into their own.
struct StepSums {
  Floats of[4];

  template <class Code, bool first>
  void add(Word codes, float scale, float weight) {
    add_one<Code, first, 0>(codes, scale, weight);
    add_one<Code, first, 1>(codes, scale, weight);
    add_one<Code, first, 2>(codes, scale, weight);
    add_one<Code, first, 3>(codes, scale, weight);
  }

  template <class Type>
  void store(unsigned char* y) const {
    if constexpr (sizeof(typename Type::Bits) == 2) {
      put(y, interleaved(Type::narrow(of[0]) | Type::narrow(of[1]) << 16,
                         Type::narrow(of[2]) | Type::narrow(of[3]) << 16));
    } else {
      const auto even = interleaved(Type::store(of[0]), Type::store(of[2]));
      const auto odd = interleaved(Type::store(of[1]), Type::store(of[3]));
      put(y, interleaved(even.first, odd.first));
      put(y + 2 * register_bytes, interleaved(even.second, odd.second));
    }
  }

 private:
  template <class Code, bool first, int j>
  void add_one(Word codes, float scale, float weight) {
    const Floats term = weight * (scale * Code::template decode<j>(codes));
    of[j] = first ? term : of[j] + term;
  }
  static void put(unsigned char* y, std::pair<Word, Word> words) {
    std::memcpy(y, &words.first, register_bytes);
    std::memcpy(y + register_bytes, &words.second, register_bytes);
  }
};

template <class Type, class Code>
void dequantised_sum(void* to, const void* const* values, const float* const* scales, const float* weights,
                     int count, uint64_t hidden) {
  constexpr size_t width = sizeof(typename Type::Bits);
  auto* y = static_cast<unsigned char*>(to);
  const auto* codes = reinterpret_cast<const unsigned char* const*>(values);
  if (count == 0) {
    std::memset(y, 0, hidden * width);
    return;
  }
  const auto scale = [&](int k, size_t at) {
    return scales[k][Code::quant == Quant::int8 ? 0 : at / quant_block];
  };
  static_assert(quant_block % (2 * step) == 0);  // two steps have one scale
  size_t at = 0;
  for (; at + 2 * step <= hidden; at += 2 * step) {
    StepSums low, high;
    const auto add = [&]<bool first>(int k, std::bool_constant<first>) {
      const float s = scale(k, at), w = weights[k];
      low.add<Code, first>(load_vector<Word>(codes[k] + at), s, w);
      high.add<Code, first>(load_vector<Word>(codes[k] + at + step), s, w);
    };
    add(0, std::true_type());
    for (int k = 1; k < count; ++k) add(k, std::false_type());
    low.store<Type>(y + at * width);
    high.store<Type>(y + (at + step) * width);
  }
  // The rest by the same code, so that it has the same bits: each row's end in a register of its own.
  for (; at < hidden; at += step) {
    const size_t here = std::min(step, hidden - at);
    StepSums sums{};
    for (int k = 0; k < count; ++k) {
      Word rest{};
      std::memcpy(&rest, codes[k] + at, here);
      k == 0 ? sums.add<Code, true>(rest, scale(k, at), weights[k])
             : sums.add<Code, false>(rest, scale(k, at), weights[k]);
    }
    unsigned char out[step * width];
    sums.store<Type>(out);
    std::memcpy(y + at * width, out, here * width);
  }
}

}  // namespace
}  // namespace xccl
