// Floors of dispatch and combine: one pass over the memory each, where every row goes being known beforehand.
#include <stddef.h>

#include "floor.h"
#include "floor_copy.h"
#include "floor_meet.h"

// Copies `rows` rows; row i from offset from[i] to offset to[i]. Returns 0, or -1 if there is no such method here.
int floor_copy_rows(const struct place* at, const int64_t* from, const int64_t* to, int64_t rows,
                    int64_t row_bytes, enum copy_method method, struct span* taken) {
  copy_function* copy = method == COPY_NON_TEMPORAL ? non_temporal_copy() : copy_by_memcpy;
  if (!copy || (method == COPY_NON_TEMPORAL && row_bytes % 128 != 0)) return -1;
  meet(at);
  taken->start = now_ns();
  for (int64_t i = 0; i < rows; ++i) copy(at->base + to[i], at->base + from[i], (size_t)row_bytes);
  finish_stores();
  taken->end = now_ns();
  return 0;
}

enum { MOST_TOPK = 64 };

// One token's sum: rows widened, weighted, added in float32, rounded to nearest even.
typedef void sum_function(const uint16_t* const* rows, const float* weights, int topk, int64_t hidden,
                          uint16_t* out);

static void sum_from(int64_t first, const uint16_t* const* rows, const float* weights, int topk,
                     int64_t hidden, uint16_t* out) {
  union {
    uint32_t bits;
    float value;
  } number;
  for (int64_t i = first; i < hidden; ++i) {
    float sum = 0;
    for (int k = 0; k < topk; ++k) {
      number.bits = (uint32_t)rows[k][i] << 16;
      sum += weights[k] * number.value;
    }
    number.value = sum;
    out[i] = (uint16_t)((number.bits + 0x7fff + ((number.bits >> 16) & 1)) >> 16);
  }
}

static void sum_generic(const uint16_t* const* rows, const float* weights, int topk, int64_t hidden,
                        uint16_t* out) {
  sum_from(0, rows, weights, topk, hidden, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static inline __m256 widen_avx2(const uint16_t* row) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)row)), 16));
}

__attribute__((target("avx2,fma"))) static inline __m256i narrow_avx2(__m256 sum) {
  const __m256i bits = _mm256_castps_si256(sum);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_set1_epi32(0x7fff);
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, half), odd), 16);
}

__attribute__((target("avx2,fma"))) static void sum_avx2(const uint16_t* const* rows, const float* weights,
                                                         int topk, int64_t hidden, uint16_t* out) {
  int64_t i = 0;
  for (; i + 32 <= hidden; i += 32) {
    __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
    for (int k = 0; k < topk; ++k) {
      const __m256 weight = _mm256_set1_ps(weights[k]);
      a = _mm256_fmadd_ps(weight, widen_avx2(rows[k] + i), a);
      b = _mm256_fmadd_ps(weight, widen_avx2(rows[k] + i + 8), b);
      c = _mm256_fmadd_ps(weight, widen_avx2(rows[k] + i + 16), c);
      d = _mm256_fmadd_ps(weight, widen_avx2(rows[k] + i + 24), d);
    }
    // The packing works within 128-bit halves; the permutation puts them back in order.
    const __m256i ab = _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow_avx2(a), narrow_avx2(b)), 0xd8);
    const __m256i cd = _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow_avx2(c), narrow_avx2(d)), 0xd8);
    _mm256_storeu_si256((__m256i*)(out + i), ab);
    _mm256_storeu_si256((__m256i*)(out + i + 16), cd);
  }
  sum_from(i, rows, weights, topk, hidden, out);
}

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

AVX512 static inline __m512 widen_avx512(const uint16_t* row) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)row)), 16));
}

AVX512 static inline __m256i narrow_avx512(__m512 sum) {
  const __m512i bits = _mm512_castps_si512(sum);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_set1_epi32(0x7fff);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, half), odd), 16));
}

AVX512 static void sum_avx512(const uint16_t* const* rows, const float* weights, int topk, int64_t hidden,
                              uint16_t* out) {
  int64_t i = 0;
  for (; i + 32 <= hidden; i += 32) {
    __m512 a = _mm512_setzero_ps(), b = a;
    for (int k = 0; k < topk; ++k) {
      const __m512 weight = _mm512_set1_ps(weights[k]);
      a = _mm512_fmadd_ps(weight, widen_avx512(rows[k] + i), a);
      b = _mm512_fmadd_ps(weight, widen_avx512(rows[k] + i + 16), b);
    }
    _mm256_storeu_si256((__m256i*)(out + i), narrow_avx512(a));
    _mm256_storeu_si256((__m256i*)(out + i + 16), narrow_avx512(b));
  }
  sum_from(i, rows, weights, topk, hidden, out);
}
#endif

static sum_function* best_sum(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return sum_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return sum_avx2;
#endif
  return sum_generic;
}

// Sums bfloat16 rows, weighted, in one pass; row (t, k) lies at offset from[t * topk + k].
int floor_sum_rows(const struct place* at, const int64_t* from, const float* weights, uint16_t* out,
                   int64_t tokens, int topk, int64_t hidden, struct span* taken) {
  if (topk > MOST_TOPK) return -1;
  sum_function* sum = best_sum();
  meet(at);
  taken->start = now_ns();
  for (int64_t t = 0; t < tokens; ++t) {
    const uint16_t* rows[MOST_TOPK];
    for (int k = 0; k < topk; ++k) rows[k] = (const uint16_t*)(at->base + from[t * topk + k]);
    sum(rows, weights + t * topk, topk, hidden, out + t * hidden);
  }
  taken->end = now_ns();
  return 0;
}
