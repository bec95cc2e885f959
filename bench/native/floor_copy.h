// Copies: memcpy, and by stores that bypass the caches. Which instruction set is decided at run time.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f"))) static inline void stream_avx512(char* to, const char* from,
                                                                    size_t bytes) {
  for (size_t i = 0; i < bytes; i += 128) {
    const __m512i a = _mm512_loadu_si512(from + i), b = _mm512_loadu_si512(from + i + 64);
    _mm512_stream_si512((__m512i*)(to + i), a);
    _mm512_stream_si512((__m512i*)(to + i + 64), b);
  }
}

__attribute__((target("avx2"))) static inline void stream_avx2(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 128) {
    const __m256i a = _mm256_loadu_si256((const __m256i*)(from + i));
    const __m256i b = _mm256_loadu_si256((const __m256i*)(from + i + 32));
    const __m256i c = _mm256_loadu_si256((const __m256i*)(from + i + 64));
    const __m256i d = _mm256_loadu_si256((const __m256i*)(from + i + 96));
    _mm256_stream_si256((__m256i*)(to + i), a);
    _mm256_stream_si256((__m256i*)(to + i + 32), b);
    _mm256_stream_si256((__m256i*)(to + i + 64), c);
    _mm256_stream_si256((__m256i*)(to + i + 96), d);
  }
}
#endif

typedef void copy_function(char* to, const char* from, size_t bytes);

static inline void copy_by_memcpy(char* to, const char* from, size_t bytes) { memcpy(to, from, bytes); }

// After stores that bypass the caches, before saying that they are done.
static inline void finish_stores(void) {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// For whole lines at aligned places; NULL where this processor has no such stores.
static inline copy_function* non_temporal_copy(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return stream_avx512;
  if (__builtin_cpu_supports("avx2")) return stream_avx2;
#endif
  return NULL;
}
