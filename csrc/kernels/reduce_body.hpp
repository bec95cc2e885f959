// The reductions of the collectives: sum and largest of several rows. Plain loops over fixed blocks, as in
// weighted_sum_body.hpp. Included by kernels_body.hpp only.
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
  using Signed = std::make_signed_t<Bits>;
  static Signed flip(Bits bits) {
    constexpr auto rest = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
    return static_cast<Signed>(bits ^ (static_cast<Signed>(bits) < 0 ? rest : Bits{0}));
  }
  static Bits canonical(Bits bits) {
    if constexpr (std::is_same_v<Type, Int64>) return bits;
    constexpr uint64_t infinity = std::is_same_v<Type, Float32>   ? 0x7f800000u
                                  : std::is_same_v<Type, Float16> ? 0x7c00u
                                                                  : 0x7f80u;
    constexpr uint64_t nan = std::is_same_v<Type, Float32>   ? 0x7fc00000u
                             : std::is_same_v<Type, Float16> ? 0x7e00u
                                                             : 0x7fc0u;
    constexpr auto rest = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
    return static_cast<Bits>(bits & rest) > static_cast<Bits>(infinity) ? static_cast<Bits>(nan) : bits;
  }
  static Signed load(Bits bits) {
    if constexpr (std::is_same_v<Type, Int64>) return static_cast<Signed>(bits);
    return flip(canonical(bits));
  }
  static Bits store(Signed value) {
    if constexpr (std::is_same_v<Type, Int64>) return static_cast<Bits>(value);
    return static_cast<Bits>(flip(static_cast<Bits>(value)));
  }
};

// All of a block is read before any of it is written: so `out` may be one of the rows.
template <class Element, class Accumulate>
inline void reduce_block(unsigned char* out, const unsigned char* const* rows, int count, uint64_t first,
                         uint64_t elements, Accumulate accumulate) {
  using Bits = typename Element::Bits;
  decltype(Element::load(Bits{})) result[block];
  Bits in[block];
  for (int k = 0; k < count; ++k) {
    std::memcpy(in, rows[k] + first * sizeof(Bits), elements * sizeof(Bits));
    if (k == 0)
      for (uint64_t i = 0; i < elements; ++i) result[i] = Element::load(in[i]);
    else
      for (uint64_t i = 0; i < elements; ++i) result[i] = accumulate(result[i], Element::load(in[i]));
  }
  for (uint64_t i = 0; i < elements; ++i) in[i] = Element::store(result[i]);
  std::memcpy(out + first * sizeof(Bits), in, elements * sizeof(Bits));
}

template <class Element, class Accumulate>
inline void reduce_rows(void* to, const void* const* from, int count, uint64_t elements,
                        Accumulate accumulate) {
  auto* out = static_cast<unsigned char*>(to);
  const auto* rows = reinterpret_cast<const unsigned char* const*>(from);
  uint64_t first = 0;
  for (; first + block <= elements; first += block)
    reduce_block<Element>(out, rows, count, first, block, accumulate);
  if (first < elements) reduce_block<Element>(out, rows, count, first, elements - first, accumulate);
}

template <class Type>
void sum(void* out, const void* const* rows, int count, uint64_t elements) {
  reduce_rows<Type>(out, rows, count, elements, [](auto a, auto b) { return a + b; });
}

template <class Type>
void largest(void* out, const void* const* rows, int count, uint64_t elements) {
  reduce_rows<Ordered<Type>>(out, rows, count, elements, [](auto a, auto b) { return a > b ? a : b; });
}

}  // namespace
}  // namespace xccl
