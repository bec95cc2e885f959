// The row kernels of every instruction set against a slow and obvious sum, bit for bit.
#include "kernels/kernels.hpp"

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "check.hpp"

using namespace xccl;

namespace {

float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float sign = half & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? std::nanf("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1.0f + static_cast<float>(fraction) / 1024, exponent - 15)
                          : std::ldexp(static_cast<float>(fraction) / 1024, -14));
}

float load(ElementType type, const void* row, size_t i) {
  uint16_t bits16;
  float value;
  switch (type) {
    case ElementType::float32:
      std::memcpy(&value, static_cast<const char*>(row) + 4 * i, 4);
      return value;
    case ElementType::bfloat16:
      std::memcpy(&bits16, static_cast<const char*>(row) + 2 * i, 2);
      return std::bit_cast<float>(uint32_t{bits16} << 16);
    case ElementType::float16:
      std::memcpy(&bits16, static_cast<const char*>(row) + 2 * i, 2);
      return half_to_float(bits16);
    case ElementType::int64:
      break;  // no row is that
  }
  std::abort();
}

// Rounds to nearest even by looking at the two neighbours in the smaller type, which `as_float` reads.
template <class AsFloat>
uint16_t round16(float value, uint16_t infinity, uint16_t nan, AsFloat as_float) {
  if (std::isnan(value)) return nan;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  uint16_t low = 0, high = infinity;  // bits grow with the magnitude: bisect
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (static_cast<double>(as_float(middle)) <= magnitude ? low : high) = middle;
  }
  // Beyond the largest finite number, rounding acts as if the next power of two were there.
  const double below = as_float(low), above = high == infinity ? 2 * static_cast<double>(as_float(low)) -
                                                                     as_float(static_cast<uint16_t>(low - 1))
                                                               : static_cast<double>(as_float(high));
  const double middle = (below + above) / 2;
  const bool up = magnitude > middle || (magnitude == middle && (low & 1));
  return sign | (std::isinf(value) || up ? high : low);
}

void store(ElementType type, float value, std::string& row, size_t i) {
  if (type == ElementType::float32) {
    if (std::isnan(value)) value = std::bit_cast<float>(0x7fc00000u);
    std::memcpy(&row[4 * i], &value, 4);
  } else {
    const uint16_t bits = type == ElementType::float16 ? round16(value, 0x7c00, 0x7e00, half_to_float)
                                                       : round16(value, 0x7f80, 0x7fc0, [](uint16_t b) {
                                                           return std::bit_cast<float>(uint32_t{b} << 16);
                                                         });
    std::memcpy(&row[2 * i], &bits, 2);
  }
}

std::string slow_sum(ElementType type, const std::vector<std::string>& rows,
                     const std::vector<float>& weights, size_t hidden) {
  std::string out(hidden * element_bytes(type), '\0');
  for (size_t i = 0; i < hidden; ++i) {
    float sum = 0;
    for (size_t k = 0; k < rows.size(); ++k) {
      const float product = weights[k] * load(type, rows[k].data(), i);
      sum = k == 0 ? product : sum + product;
    }
    store(type, sum, out, i);
  }
  return out;
}

std::string fast_sum(const Kernels& kernels, ElementType type, const std::vector<std::string>& rows,
                     const std::vector<float>& weights, size_t hidden) {
  std::string out(hidden * element_bytes(type) + 1, '\x55');
  std::vector<const void*> pointers;
  for (const auto& row : rows) pointers.push_back(row.data());
  kernels.weighted_sum(type)(out.data(), pointers.data(), weights.data(), static_cast<int>(rows.size()),
                             hidden);
  CHECK(out.back() == '\x55');
  out.pop_back();
  return out;
}

constexpr ElementType all_types[] = {ElementType::float32, ElementType::float16, ElementType::bfloat16};

std::string reduced(const Kernels& kernels, ElementType type, ReduceOp op,
                    const std::vector<std::string>& rows, std::string* out, size_t elements) {
  std::vector<const void*> pointers;
  for (const auto& row : rows) pointers.push_back(row.data());
  kernels.reduce(type, op)(out->data(), pointers.data(), static_cast<int>(rows.size()), elements);
  return *out;
}

// The sum of one float32 row of weight one, in another type.
std::string slow_round(ElementType type, const std::string& row, size_t hidden) {
  std::string out(hidden * element_bytes(type), '\0');
  for (size_t i = 0; i < hidden; ++i) {
    float value;
    std::memcpy(&value, &row[4 * i], 4);
    store(type, value, out, i);
  }
  return out;
}

struct QuantisedRow {
  std::string codes;
  std::vector<float> scales;
};

float fp8_to_float(uint32_t code) {
  const int exponent = static_cast<int>(code >> 3 & 15), fraction = static_cast<int>(code & 7);
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  return sign * (exponent ? std::ldexp(1.0f + static_cast<float>(fraction) / 8, exponent - 7)
                          : std::ldexp(static_cast<float>(fraction) / 8, -6));
}

// The nearest of all codes, of two the even one.
char slow_fp8(float value) {
  uint32_t best = 0;
  for (uint32_t code = 1; code < 0x7f; ++code) {
    const float old_error = std::fabs(fp8_to_float(best) - std::fabs(value)),
                error = std::fabs(fp8_to_float(code) - std::fabs(value));
    if (error < old_error || (error == old_error && code % 2 == 0)) best = code;
  }
  return static_cast<char>(best | (std::signbit(value) ? 0x80 : 0));
}

QuantisedRow slow_quantise(Quant quant, ElementType type, const std::string& row, size_t hidden) {
  const float top = quant == Quant::int8 ? 127.0f : 448.0f;
  const size_t block = quant == Quant::int8 ? hidden : 128;
  QuantisedRow out;
  for (size_t at = 0; at < hidden; at += block) {
    const size_t end = std::min(at + block, hidden);
    float range = 0x1p-117f;
    bool finite = true;
    for (size_t i = at; i < end; ++i) {
      finite &= std::isfinite(load(type, row.data(), i));
      range = std::max(range, std::fabs(load(type, row.data(), i)));
    }
    range = std::min(range, std::nextafter(std::numeric_limits<float>::max(), 0.0f));
    const float inverse = top / range;
    out.scales.push_back(finite ? range / top : std::bit_cast<float>(0x7fc00000u));
    for (size_t i = at; i < end; ++i) {
      const float scaled = load(type, row.data(), i) * inverse;
      out.codes += !finite                ? '\0'
                   : quant == Quant::int8 ? static_cast<char>(std::nearbyint(scaled))
                                          : slow_fp8(scaled);
    }
  }
  return out;
}

// As float32.
std::string slow_dequantise(Quant quant, const QuantisedRow& row, size_t hidden) {
  std::string out(4 * hidden, '\0');
  for (size_t i = 0; i < hidden; ++i) {
    const float code = quant == Quant::int8 ? static_cast<float>(static_cast<signed char>(row.codes[i]))
                                            : fp8_to_float(static_cast<unsigned char>(row.codes[i]));
    const float value = row.scales[quant == Quant::int8 ? 0 : i / 128] * code;
    std::memcpy(&out[4 * i], &value, 4);
  }
  return out;
}

// Replaces what is infinite or not a number.
void make_finite(ElementType type, std::string& row, size_t hidden) {
  for (size_t i = 0; i < hidden; ++i)
    if (!std::isfinite(load(type, row.data(), i)))
      std::memset(&row[element_bytes(type) * i], 0, element_bytes(type));
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

std::string slow_largest(ElementType type, const std::vector<std::string>& rows, size_t elements) {
  const size_t width = element_bytes(type);
  std::string out;
  for (size_t i = 0; i < elements; ++i) {
    std::string best;
    for (const auto& row : rows) {
      const std::string here = row.substr(i * width, width);
      const auto above = [&] {
        if (type == ElementType::int64) {
          int64_t a, b;
          std::memcpy(&a, here.data(), 8);
          std::memcpy(&b, best.data(), 8);
          return a > b;
        }
        const float a = load(type, here.data(), 0), b = load(type, best.data(), 0);
        if (std::isnan(b)) return false;
        return std::isnan(a) || a > b || (a == b && !std::signbit(a));
      };
      if (best.empty() || above()) best = here;
    }
    if (type != ElementType::int64 && std::isnan(load(type, best.data(), 0)))
      best = type == ElementType::float32   ? std::string("\x00\x00\xc0\x7f", 4)
             : type == ElementType::float16 ? std::string("\x00\x7e", 2)
                                            : std::string("\xc0\x7f", 2);
    out += best;
  }
  return out;
}

std::string slow_int64_sum(const std::vector<std::string>& rows, size_t elements) {
  std::vector<uint64_t> sums(elements, 0);
  for (const auto& row : rows)
    for (size_t i = 0; i < elements; ++i) {
      uint64_t value;
      std::memcpy(&value, row.data() + 8 * i, 8);
      sums[i] += value;
    }
  return std::string(reinterpret_cast<const char*>(sums.data()), 8 * elements);
}

}  // namespace

TEST("every kernel gives the bits of the slow sum, for random rows of any length") {
  std::mt19937 random(2);
  for (const Kernels* kernels : usable_kernels())
    for (const ElementType type : all_types)
      for (const size_t hidden : {1, 7, 255, 256, 257, 1000}) {
        for (size_t count = 0; count <= 5; ++count) {
          std::vector<std::string> rows(count);
          std::vector<float> weights;
          for (auto& row : rows) {
            row.resize(hidden * element_bytes(type));
            for (auto& c : row)
              c = static_cast<char>(random());  // every bit pattern: NaN, infinities, denormals too
            weights.push_back(random() % 8 ? std::bit_cast<float>(
                                                 static_cast<uint32_t>(0x3e000000u + random() % 0x02000000u))
                                           : std::bit_cast<float>(static_cast<uint32_t>(random())));
          }
          CHECK(fast_sum(*kernels, type, rows, weights, hidden) == slow_sum(type, rows, weights, hidden));
        }
      }
}

TEST("reductions of every kernel give the bits of slow ones, also where the result replaces a row") {
  std::mt19937 random(3);
  for (const Kernels* kernels : usable_kernels())
    for (const ElementType type :
         {ElementType::float32, ElementType::float16, ElementType::bfloat16, ElementType::int64})
      for (const size_t elements : {0, 1, 7, 255, 256, 257, 1000})
        for (size_t count = 1; count <= 5; ++count) {
          std::vector<std::string> rows(count);
          for (auto& row : rows) {
            row.resize(elements * element_bytes(type));
            for (auto& c : row) c = static_cast<char>(random());
            // Equal magnitudes, zeros and extremes meet more often than by chance.
            if (random() % 2)
              for (size_t i = 0; i < row.size(); ++i)
                row[i] = static_cast<char>((i + 1) % element_bytes(type) ? 0 : (random() % 4) * 0x3f + 0x40);
          }
          const std::string sum = type == ElementType::int64
                                      ? slow_int64_sum(rows, elements)
                                      : slow_sum(type, rows, std::vector<float>(count, 1.0f), elements);
          const std::string largest = slow_largest(type, rows, elements);
          for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
            const std::string& expected = op == ReduceOp::sum ? sum : largest;
            std::string out(expected.size() + 1, '\x55');
            CHECK(reduced(*kernels, type, op, rows, &out, elements) == expected + '\x55');
            auto in_place = rows;
            std::string* replaced = &in_place[random() % count];
            CHECK(reduced(*kernels, type, op, in_place, replaced, elements) == expected);
          }
        }
}

TEST("quantising, and sums of quantised rows, give the bits of slow ones, for random rows of any length") {
  std::mt19937 random(5);
  for (const Quant quant : {Quant::int8, Quant::fp8_e4m3})
    for (const ElementType type : all_types)
      for (const size_t hidden : {1, 7, 64, 127, 128, 200, 257, 1000}) {
        std::vector<QuantisedRow> slow;
        std::vector<float> weights;
        for (int k = 0; k < 4; ++k) {
          std::string row(hidden * element_bytes(type), '\0');
          for (auto& c : row) c = static_cast<char>(random());
          if (k < 3) make_finite(type, row, hidden);
          slow.push_back(slow_quantise(quant, type, row, hidden));
          weights.push_back(static_cast<float>(k) - 1.25f);
          for (const Kernels* kernels : usable_kernels()) {
            // In memory of exactly their size, where a sanitizer sees what is touched beyond.
            QuantisedRow fast{std::string(hidden, '\x55'),
                              std::vector<float>(scales_of_row(quant, hidden), -1.0f)};
            kernels->quantise(type, quant)(row.data(), hidden, fast.codes.data(), fast.scales.data());
            CHECK(fast.codes == slow.back().codes && same(fast.scales, slow.back().scales));
          }
        }
        for (size_t count = 0; count <= slow.size(); ++count) {
          std::vector<std::string> rows;
          std::vector<const void*> codes;
          std::vector<const float*> scales;
          for (size_t k = 0; k < count; ++k) {
            rows.push_back(slow_dequantise(quant, slow[k], hidden));
            codes.push_back(slow[k].codes.data()), scales.push_back(slow[k].scales.data());
          }
          const std::string expected = slow_sum(ElementType::float32, rows, weights, hidden);
          for (const Kernels* kernels : usable_kernels()) {
            std::string y(hidden * element_bytes(type), '\x55');
            kernels->dequantised_sum(type, quant)(y.data(), codes.data(), scales.data(), weights.data(),
                                                  static_cast<int>(count), hidden);
            CHECK(y == slow_round(type, expected, hidden));
          }
        }
      }
}

TEST("weight one gives every 16-bit number back, NaN as the canonical one") {
  for (const Kernels* kernels : usable_kernels())
    for (const ElementType type : {ElementType::float16, ElementType::bfloat16}) {
      std::string row(2 * 65536, '\0');
      for (uint32_t i = 0; i < 65536; ++i) {
        const auto bits = static_cast<uint16_t>(i);
        std::memcpy(&row[2 * i], &bits, 2);
      }
      const std::string out = fast_sum(*kernels, type, {row}, {1.0f}, 65536);
      for (uint32_t i = 0; i < 65536; ++i) {
        uint16_t bits;
        std::memcpy(&bits, &out[2 * i], 2);
        const bool nan = std::isnan(load(type, row.data(), i));
        CHECK(bits == (nan ? (type == ElementType::float16 ? 0x7e00 : 0x7fc0) : i));
      }
    }
}

TEST("results do not change with the program's rounding mode or flush-to-zero") {
  const std::vector<std::string> rows = {std::string("\x01\x00\x03\x00\xff\x7b\x01\x3c", 8),
                                         std::string("\x02\x00\x01\x80\x01\x00\x01\x40", 8)};
  const std::vector<float> weights = {0.75f, 0.3f};
  for (const Kernels* kernels : usable_kernels()) {
    const std::string expected = fast_sum(*kernels, ElementType::float16, rows, weights, 4);
    std::fesetround(FE_UPWARD);
#if defined(__x86_64__)
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);  // flush to zero, denormals are zero
#endif
    std::string got;
    {
      const FloatEnvironment environment;
      got = fast_sum(*kernels, ElementType::float16, rows, weights, 4);
    }
    CHECK(std::fegetround() == FE_UPWARD);
#if defined(__x86_64__)
    CHECK((__builtin_ia32_stmxcsr() & 0x8040) == 0x8040);
    __builtin_ia32_ldmxcsr(before);
#endif
    std::fesetround(FE_TONEAREST);
    CHECK(got == expected);
  }
}

TEST("a kernel that does not exist is refused, and the others are named") {
  const Error error = CHECK_THROWS(select_kernels("sse9"), Status::InvalidArgument);
  CHECK(std::strstr(error.what(), "generic"));
}

TEST_MAIN()
