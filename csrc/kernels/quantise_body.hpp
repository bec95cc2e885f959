// Quantising a row: the largest magnitude of a block, from it the scale, then a code for each element. Included by
// kernels_body.hpp only.
#pragma once

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/code_body.hpp"
#include "kernels/kernels.hpp"

namespace xccl {
namespace {

// What the largest magnitude counts as at least, so that its quotients are finite and normal; and at most, so that
// top * scale is finite.
constexpr float least_range = 0x1p-117f, most_range = 0x1.fffffcp127f;

// The larger of each lane and the one `distance` from it, then of those, down to neighbours: all are the largest.
template <size_t distance, class V, size_t... i>
inline V spread_largest(V lanes, std::index_sequence<i...> all_lanes) {
  const V others = choose<(i ^ distance)...>(lanes, lanes);
  const V larger = lanes > others ? lanes : others;
  if constexpr (distance == 1)
    return larger;
  else
    return spread_largest<distance / 2>(larger, all_lanes);
}

template <class V>
inline auto largest_lane(V lanes) {
  if constexpr (sizeof(V) > 16) {
    using Lane = std::decay_t<decltype(lanes[0])>;
    using Half = Vector<Lane, sizeof(V) / sizeof(Lane) / 2>;
    const auto [low, high] = std::bit_cast<std::array<Half, 2>>(lanes);
    return largest_lane(low > high ? low : high);
  } else {
    return spread_largest<lanes_of<V>.size() / 2>(lanes, lanes_of<V>)[0];
  }
}

// Magnitudes are compared by their bits: that is their order, and NaN is above infinity.
template <class Type>
inline float largest_magnitude(const unsigned char* x, size_t bytes) {
  using Lane = std::make_signed_t<typename Type::Bits>;
  using V = Vector<Lane, register_bytes / sizeof(Lane)>;
  constexpr Lane all_but_sign =
      static_cast<Lane>(static_cast<typename Type::Bits>(~typename Type::Bits{0}) >> 1);
  constexpr size_t one = sizeof(V), block = 4 * one;
  const auto larger = [](V a, V b) { return a > b ? a : b; };
  const auto magnitudes = [&](size_t at) { return load_vector<V>(x + at) & all_but_sign; };
  V most[4] = {};
  size_t at = 0;
  for (; at + block <= bytes; at += block)
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) most[r] = larger(most[r], magnitudes(at + r * one));
  for (; at + one <= bytes; at += one) most[0] = larger(most[0], magnitudes(at));
  if (at < bytes) {
    V rest{};
    std::memcpy(&rest, x + at, bytes - at);
    most[1] = larger(most[1], rest & all_but_sign);
  }
  const auto bits =
      static_cast<uint32_t>(largest_lane(larger(larger(most[0], most[1]), larger(most[2], most[3]))));
  if constexpr (sizeof(Lane) == 2)
    return Type::widen(all(bits))[0];
  else
    return std::bit_cast<float>(bits);
}

// Codes of `step` elements.
template <class Type, class Code>
inline Halves encode_step(const unsigned char* x, float inverse) {
  if constexpr (sizeof(typename Type::Bits) == 2) {
    const auto two_in_a_word = [&](size_t r) {
      const TwoFloats values = Type::load(load_vector<Word>(x + r * register_bytes));
      return std::bit_cast<Halves>(Code::encode(inverse * values.low) | Code::encode(inverse * values.high)
                                                                            << 8);
    };
    return evens(two_in_a_word(0), two_in_a_word(1));
  } else {
    const auto two_in_a_long = [&](size_t r) {
      const auto codes =
          std::bit_cast<Longs>(Code::encode(inverse * Type::load(load_vector<Word>(x + r * register_bytes))));
      return std::bit_cast<Word>(codes | codes >> 24);
    };
    return evens(std::bit_cast<Halves>(evens(two_in_a_long(0), two_in_a_long(1))),
                 std::bit_cast<Halves>(evens(two_in_a_long(2), two_in_a_long(3))));
  }
}

// Codes of `elements` elements that are multiplied by `inverse`.
template <class Type, class Code>
inline void encode_block(const unsigned char* x, size_t elements, float inverse, unsigned char* codes) {
  constexpr size_t width = sizeof(typename Type::Bits);
  size_t at = 0;
  for (; at + step <= elements; at += step) {
    const Halves out = encode_step<Type, Code>(x + at * width, inverse);
    std::memcpy(codes + at, &out, sizeof out);
  }
  if (at == elements) return;
  unsigned char rest[step * width] = {};
  std::memcpy(rest, x + at * width, (elements - at) * width);
  const Halves out = encode_step<Type, Code>(rest, inverse);
  std::memcpy(codes + at, &out, elements - at);
}

// Calls with a whole block's size as a constant, for which loops are unrolled.
template <class Code, class Call>
inline auto for_block(uint64_t elements, Call call) {
  return Code::quant != Quant::int8 && elements == quant_block ? call(quant_block) : call(elements);
}

template <class Type, class Code>
void quantise(const void* row, uint64_t hidden, void* values, float* scales) {
  constexpr size_t width = sizeof(typename Type::Bits);
  const auto* x = static_cast<const unsigned char*>(row);
  auto* codes = static_cast<unsigned char*>(values);
  const uint64_t block = Code::quant == Quant::int8 ? hidden : quant_block;
  // Some blocks at a time in each step, so that the divisions and the end of each maximum do not wait for one another.
  constexpr size_t together = 16;
  using Ranges = Vector<float, together>;
  for (uint64_t first = 0; first < hidden; first += together * block) {
    const uint64_t end = std::min(hidden, first + together * block);
    Ranges largest{};
    size_t blocks = 0;
    for (uint64_t at = first; at < end; at += block)
      largest[blocks++] = for_block<Code>(std::min(block, end - at), [&](uint64_t elements) {
        return largest_magnitude<Type>(x + at * width, elements * width);
      });
    Ranges range = largest > least_range ? largest : Ranges{} + least_range;
    range = range < most_range ? range : Ranges{} + most_range;
    const Ranges inverse = Code::top / range;
    // Infinite, or not a number: nothing of this block may look as if it were right.
    const auto finite = largest <= FLT_MAX;
    const Ranges scale = finite ? range / Code::top : Ranges{} + std::bit_cast<float>(0x7fc00000u);
    std::memcpy(scales, &scale, blocks * sizeof(float));
    scales += blocks;
    for (size_t b = 0; b < blocks; ++b) {
      const uint64_t at = first + b * block;
      for_block<Code>(std::min(block, end - at), [&](uint64_t elements) {
        if (finite[b])
          encode_block<Type, Code>(x + at * width, elements, inverse[b], codes + at);
        else
          std::memset(codes + at, 0, elements);
      });
    }
  }
}

}  // namespace
}  // namespace xccl
