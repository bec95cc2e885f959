// The reductions of the collectives: sum and largest of several rows. Included by kernels_body.hpp only.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/element_body.hpp"
#include "kernels/kernels.hpp"

namespace xccl {
namespace {

// Numbers that compare as whole numbers just as the elements do: NaN, the canonical one, is above infinity, and
// -0 is below +0. The same function leads back.
template <class Type>
struct Ordered {
  using Bits = typename Type::Bits;
  static constexpr size_t lanes = register_bytes / sizeof(Bits);
  using Memory = Vector<Bits, lanes>;
  using Accumulator = Vector<std::make_signed_t<Bits>, lanes>;

  static Accumulator load(Memory bits) {
    if constexpr (std::is_same_v<Type, Int64>) return std::bit_cast<Accumulator>(bits);
    return flip(canonical(bits));
  }
  static Memory store(Accumulator value) {
    if constexpr (std::is_same_v<Type, Int64>) return std::bit_cast<Memory>(value);
    return std::bit_cast<Memory>(flip(std::bit_cast<Memory>(value)));
  }

 private:
  static constexpr auto rest = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);  // all but the sign
  static Accumulator flip(Memory bits) {
    const auto number = std::bit_cast<Accumulator>(bits);
    return number ^
           (number < 0 ? Accumulator{} + static_cast<std::make_signed_t<Bits>>(rest) : Accumulator{});
  }
  static Memory canonical(Memory bits) {
    constexpr bool single = std::is_same_v<Type, Float32>, half = std::is_same_v<Type, Float16>;
    constexpr auto infinity = static_cast<Bits>(single ? 0x7f800000u : half ? 0x7c00u : 0x7f80u);
    constexpr auto nan = static_cast<Bits>(single ? 0x7fc00000u : half ? 0x7e00u : 0x7fc0u);
    return (bits & rest) > infinity ? Memory{} + nan : bits;
  }
};

template <class Type>
void sum(void* out, const void* const* rows, int count, uint64_t elements) {
  using Sum = typename Type::Accumulator;
  fold_rows<Type>(
      out, rows, count, elements, [](Sum row) { return row; },
      [](Sum sum, Sum row, int) { return sum + row; });
}

template <class Type>
void largest(void* out, const void* const* rows, int count, uint64_t elements) {
  using Most = typename Ordered<Type>::Accumulator;
  fold_rows<Ordered<Type>>(
      out, rows, count, elements, [](Most row) { return row; },
      [](Most most, Most row, int) { return most > row ? most : row; });
}

}  // namespace
}  // namespace xccl
