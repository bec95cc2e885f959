// Loading and storing one element, as the kernels' bodies see it. Included by them only, and compiled once per
// instruction set; in an unnamed namespace, since each of those files must keep its own copy.
#pragma once

#include <bit>
#include <cstdint>

namespace xccl {
namespace {

constexpr uint64_t block = 256;  // elements; the accumulator of a block stays in registers and L1

// Loads and stores of one element. `Bits` is what lies in memory.
struct Float32 {
  using Bits = uint32_t;
  static float load(Bits bits) { return std::bit_cast<float>(bits); }
  static Bits store(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
  }
};

struct BFloat16 {
  using Bits = uint16_t;
  static float load(Bits bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static Bits store(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<Bits>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
};

struct Float16 {
  using Bits = uint16_t;
  // Shift the exponent into place; infinities and NaN need a larger one, and a denormal is a normal number times
  // 2^-14 minus the implicit one, which the subtraction takes away exactly.
  static float load(Bits half) {
    const uint32_t sign = (static_cast<uint32_t>(half) & 0x8000u) << 16;
    const uint32_t shifted = (static_cast<uint32_t>(half) & 0x7fffu) << 13;
    const uint32_t exponent = shifted & 0x0f800000u;
    const uint32_t normal = shifted + (112u << 23);
    const uint32_t special = normal + (112u << 23);
    const float denormal = std::bit_cast<float>(shifted + (113u << 23)) - std::bit_cast<float>(113u << 23);
    const uint32_t magnitude = exponent == 0x0f800000u ? special
                               : exponent == 0         ? std::bit_cast<uint32_t>(denormal)
                                                       : normal;
    return std::bit_cast<float>(sign | magnitude);
  }
  // Round to nearest even: normals by adding half a unit and the lowest kept bit; results below 2^-14 by letting
  // the adder round at the denormals' fixed place.
  static Bits store(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const float shifted = std::bit_cast<float>(magnitude) + std::bit_cast<float>(126u << 23);
    const uint32_t denormal = std::bit_cast<uint32_t>(shifted) - (126u << 23);
    // 65520 and above round to infinity.
    const uint32_t finite = magnitude < (113u << 23) ? denormal : magnitude >= 0x477ff000u ? 0x7c00u : normal;
    return static_cast<Bits>(magnitude > 0x7f800000u ? 0x7e00u : sign | finite);
  }
};

// Whole numbers are added modulo 2^64, which is defined only for unsigned ones.
struct Int64 {
  using Bits = uint64_t;
  static uint64_t load(Bits bits) { return bits; }
  static Bits store(uint64_t value) { return value; }
};

}  // namespace
}  // namespace xccl
