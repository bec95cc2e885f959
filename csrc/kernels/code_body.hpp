// The one-byte codes of quantised rows: from a register of floats and back. Included by quantise_body.hpp and
// dequantised_sum_body.hpp only; compiled once per instruction set, like element_body.hpp.
#pragma once

#include <bit>
#include <utility>

#include "kernels/element_body.hpp"
#include "kernels/quantisation.hpp"

namespace xccl {
namespace {

static_assert(std::endian::native == std::endian::little, "the first of two elements is the lower in a word");

// As many codes as fit a register: four registers of floats.
constexpr size_t step = register_bytes;
using Ints = Vector<int32_t, register_bytes / sizeof(int32_t)>;
using Halves = Vector<uint16_t, register_bytes / sizeof(uint16_t)>;
using Longs = Vector<uint64_t, register_bytes / sizeof(uint64_t)>;

// A code has `top`, the magnitude that the largest element of a block gets; encode: codes, each in the low byte of its
// word, of numbers that do not exceed top by more than rounding; decode: what the j-th bytes of all words stand for.

struct Int8Code {
  static constexpr Quant quant = Quant::int8;
  static constexpr float top = 127;
  // Adding 1.5 * 2^23 rounds to a whole number, to nearest even, and leaves it in the low bits as two's complement.
  static Word encode(Floats value) { return std::bit_cast<Word>(value + 0x1.8p23f) & 0xffu; }
  template <int j>
  static Floats decode(Word codes) {
    return __builtin_convertvector(std::bit_cast<Ints>(codes << (24 - 8 * j)) >> 24, Floats);
  }
};

struct Fp8Code {
  static constexpr Quant quant = Quant::fp8_e4m3;
  static constexpr float top = 448;
  // Adding 2^20 times the number's power of two rounds the fraction to three bits, to nearest even, and leaves it in the
  // low ones with the implicit one; below 2^-6 the numbers lie 2^-9 apart, as from there on to twice that. An overflow of
  // the fraction counts the exponent on by itself.
  static Word encode(Floats value) {
    const auto bits = std::bit_cast<Word>(value);
    const auto power = std::bit_cast<Ints>(bits & 0x7f800000u);
    constexpr int32_t least = 121 << 23;  // 2^-6
    const auto exponent = std::bit_cast<Word>(power > least ? power : Ints{} + least);
    const Floats magnitude = std::bit_cast<Floats>(bits & 0x7fffffffu);
    const Word rounded =
        std::bit_cast<Word>(magnitude + std::bit_cast<Floats>(exponent + (20u << 23))) - exponent;
    return ((bits >> 24) & 0x80u) | (rounded + (exponent >> 20) - ((20u << 23) + (121u << 3)));
  }
  // Sign, exponent and fraction go to where float32 has them; its exponent counts from 120 more. Exact, also for
  // denormals.
  template <int j>
  static Floats decode(Word codes) {
    const Ints spread = std::bit_cast<Ints>(codes << (24 - 8 * j)) >> 4;
    return std::bit_cast<Floats>(std::bit_cast<Word>(spread) & 0x87f00000u) * 0x1p120f;
  }
};

// Lanes of a and then of b, counted on, by number.
template <size_t... numbers, class V>
inline V choose(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, numbers...);
#else
  return __builtin_shuffle(a, b, V{numbers...});
#endif
}
template <class V, size_t... i>
inline V evens(V a, V b, std::index_sequence<i...>) {
  return choose<2 * i...>(a, b);
}
template <size_t from, class V, size_t... i>
inline V interleaved(V a, V b, std::index_sequence<i...>) {
  return choose<(from + i / 2 + (i % 2) * sizeof...(i))...>(a, b);
}
template <class V>
constexpr auto lanes_of = std::make_index_sequence<sizeof(V) / sizeof(std::declval<V>()[0])>();

// The lanes of a with even numbers, then those of b.
template <class V>
inline V evens(V a, V b) {
  return evens(a, b, lanes_of<V>);
}
// a[0], b[0], a[1], b[1], ...: the first and the second half of it.
template <class V>
inline std::pair<V, V> interleaved(V a, V b) {
  return {interleaved<0>(a, b, lanes_of<V>), interleaved<lanes_of<V>.size() / 2>(a, b, lanes_of<V>)};
}

}  // namespace
}  // namespace xccl
