// Loading and storing elements, a vector register of accumulators at a time, as the kernels' bodies see it. Included by
// them only, and compiled once per instruction set; in an unnamed namespace, since each of those files must keep its
// own copy. The vectors are the compilers' own (GCC and clang on every processor), so no body names an instruction.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace xccl {
namespace {

#if defined(__AVX512F__)
constexpr size_t register_bytes = 64;
#elif defined(__AVX2__)
constexpr size_t register_bytes = 32;
#else
constexpr size_t register_bytes = 16;
#endif

template <class T, size_t lanes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <class T, size_t lanes>
using Vector = typename VectorOf<T, lanes>::Type;

template <class V>
inline V load_vector(const unsigned char* from) {
  V out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

using Word = Vector<uint32_t, register_bytes / sizeof(uint32_t)>;
using Floats = Vector<float, register_bytes / sizeof(float)>;
inline Word all(uint32_t value) { return Word{} + value; }

// What elements are while they are added. `Bits` is one in memory, `Memory` as many as are loaded at once.
struct Float32 {
  using Bits = uint32_t;
  using Memory = Word;
  using Accumulator = Floats;
  static Accumulator load(Memory bits) { return std::bit_cast<Floats>(bits); }
  static Memory store(Accumulator value) {
    const auto bits = std::bit_cast<Word>(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? all(0x7fc00000u) : bits;
  }
};

// Types of 16 bits are taken apart in place, two in each word of 32: shuffling them into registers of their own costs
// twice the rest. Which of the two is first in memory does not matter, since both go back to where they were.
struct TwoFloats {
  Floats low, high;
  friend TwoFloats operator+(TwoFloats a, TwoFloats b) { return {a.low + b.low, a.high + b.high}; }
  friend TwoFloats operator*(float a, TwoFloats b) { return {a * b.low, a * b.high}; }
};

template <class Half>
struct InPairs {
  using Bits = uint16_t;
  using Memory = Word;
  using Accumulator = TwoFloats;
  static Accumulator load(Memory bits) { return {Half::widen(bits & 0xffffu), Half::widen(bits >> 16)}; }
  static Memory store(Accumulator value) { return Half::narrow(value.low) | Half::narrow(value.high) << 16; }
};

struct BFloat16 : InPairs<BFloat16> {
  static Floats widen(Word bits) { return std::bit_cast<Floats>(bits << 16); }
  static Word narrow(Floats value) {
    const auto bits = std::bit_cast<Word>(value);
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? all(0x7fc0u) : rounded;
  }
};

struct Float16 : InPairs<Float16> {
  // Shift the exponent into place; infinities and NaN need a larger one, and a denormal is a normal number times
  // 2^-14 minus the implicit one, which the subtraction takes away exactly.
  static Floats widen(Word half) {
    const Word sign = (half & 0x8000u) << 16;
    const Word shifted = (half & 0x7fffu) << 13;
    const Word exponent = shifted & 0x0f800000u;
    const Word normal = shifted + (112u << 23);
    const Word special = normal + (112u << 23);
    const Floats denormal =
        std::bit_cast<Floats>(shifted + (113u << 23)) - std::bit_cast<Floats>(all(113u << 23));
    const Word magnitude = exponent == 0x0f800000u ? special
                           : exponent == 0         ? std::bit_cast<Word>(denormal)
                                                   : normal;
    return std::bit_cast<Floats>(sign | magnitude);
  }
  // Round to nearest even: normals by adding half a unit and the lowest kept bit; results below 2^-14 by letting
  // the adder round at the denormals' fixed place.
  static Word narrow(Floats value) {
    const auto bits = std::bit_cast<Word>(value);
    const Word sign = (bits >> 16) & 0x8000u;
    const Word magnitude = bits & 0x7fffffffu;
    const Word normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Floats shifted = std::bit_cast<Floats>(magnitude) + std::bit_cast<Floats>(all(126u << 23));
    const Word denormal = std::bit_cast<Word>(shifted) - (126u << 23);
    // 65520 and above round to infinity.
    const Word finite = magnitude < (113u << 23)   ? denormal
                        : magnitude >= 0x477ff000u ? all(0x7c00u)
                                                   : normal;
    return magnitude > 0x7f800000u ? all(0x7e00u) : sign | finite;
  }
};

// Whole numbers are added modulo 2^64, which is defined only for unsigned ones.
struct Int64 {
  using Bits = uint64_t;
  using Memory = Vector<Bits, register_bytes / sizeof(Bits)>;
  using Accumulator = Memory;
  static Accumulator load(Memory bits) { return bits; }
  static Memory store(Accumulator value) { return value; }
};

// Folds `elements` elements of `count` > 0 rows, a block of registers at a time: begin(row 0), then more(so far, row k).
// All of a block is read before any of it is written: so `out` may be one of the rows.
template <class Type, int registers, class Begin, class More>
inline void fold_block(unsigned char* out, const unsigned char* const* rows, int count, size_t at,
                       Begin begin, More more) {
  using Memory = typename Type::Memory;
  typename Type::Accumulator result[registers];
#pragma GCC unroll 8
  for (int r = 0; r < registers; ++r)
    result[r] =
        begin(Type::load(load_vector<Memory>(rows[0] + at + sizeof(Memory) * static_cast<size_t>(r))));
  for (int k = 1; k < count; ++k)
#pragma GCC unroll 8
    for (int r = 0; r < registers; ++r)
      result[r] =
          more(result[r],
               Type::load(load_vector<Memory>(rows[k] + at + sizeof(Memory) * static_cast<size_t>(r))), k);
#pragma GCC unroll 8
  for (int r = 0; r < registers; ++r) {
    const Memory bits = Type::store(result[r]);
    std::memcpy(out + at + sizeof(Memory) * static_cast<size_t>(r), &bits, sizeof bits);
  }
}

template <class Type, class Begin, class More>
inline void fold_rows(void* to, const void* const* from, int count, uint64_t elements, Begin begin,
                      More more) {
  constexpr size_t one = sizeof(typename Type::Memory), block = 4 * one;
  auto* out = static_cast<unsigned char*>(to);
  const auto* rows = reinterpret_cast<const unsigned char* const*>(from);
  const size_t bytes = elements * sizeof(typename Type::Bits);
  size_t at = 0;
  for (; at + block <= bytes; at += block) fold_block<Type, 4>(out, rows, count, at, begin, more);
  for (; at + one <= bytes; at += one) fold_block<Type, 1>(out, rows, count, at, begin, more);
  if (at == bytes) return;
  // The rest by the same code, so that it has the same bits: each row's end in a register of its own.
  typename Type::Accumulator result{};
  for (int k = 0; k < count; ++k) {
    typename Type::Memory bits{};
    std::memcpy(&bits, rows[k] + at, bytes - at);
    result = k == 0 ? begin(Type::load(bits)) : more(result, Type::load(bits), k);
  }
  const typename Type::Memory bits = Type::store(result);
  std::memcpy(out + at, &bits, bytes - at);
}

}  // namespace
}  // namespace xccl
