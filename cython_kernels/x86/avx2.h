// SPDX-License-Identifier: MIT
// What the AVX2 kernels share: the target attribute, 16 float lanes in two registers, their tree,
// exp, and loads of ragged tails that never touch a byte past the end.
//
// The attribute names no FMA on purpose: products and sums must not be contracted.
#ifndef BITNET_EDGE_X86_AVX2_H
#define BITNET_EDGE_X86_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "scalar/exp.h"
#include "scalar/lanes.h"

#define BE_AVX2 __attribute__((target("avx2,f16c")))
#define BE_AVX2_INLINE static inline __attribute__((target("avx2,f16c"), always_inline))
#define BE_AVX2_NOINLINE static __attribute__((target("avx2,f16c"), noinline))

// In front of a loop with constant bounds: all of it is unrolled, so that constant indices of
// arrays become registers.
#if defined(__clang__)
#define BE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BE_UNROLL _Pragma("GCC unroll 16")
#endif

// Empty assembly: what compilers know of the value ends here, and with it their reordering.
#ifndef BE_OPAQUE // tests/kernel_check/simde has it already
#define BE_OPAQUE(vector) __asm__("" : "+v"(vector))
#endif

// 16 lanes as in scalar/lanes.h: low holds lanes 0-7, high lanes 8-15.
typedef struct be_m256x2 {
  __m256 low, high;
} be_m256x2;

// How elements are stored; always a compile-time constant, so that its tests vanish.
typedef enum be_float_format { BE_FORMAT_F32, BE_FORMAT_F16, BE_FORMAT_BF16 } be_float_format;

BE_AVX2_INLINE size_t be_float_bytes(be_float_format format) {
  return format == BE_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t);
}

// Elements i .. i + 7 of `base` as float32.
BE_AVX2_INLINE __m256 be_load8(const void *base, size_t i, be_float_format format) {
  if (format == BE_FORMAT_F32)
    return _mm256_loadu_ps((const float *)base + i);
  __m128i x = _mm_loadu_si128((const __m128i *)((const uint16_t *)base + i));
  if (format == BE_FORMAT_F16)
    return _mm256_cvtph_ps(x);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

BE_AVX2_INLINE be_m256x2 be_load16(const void *base, size_t i, be_float_format format) {
  return (be_m256x2){be_load8(base, i, format), be_load8(base, i + 8, format)};
}

// Elements i .. i + n - 1, n < 16, and zeros behind them. Not inlined, lest its copying disturb
// the loops that it follows.
__attribute__((unused)) BE_AVX2_NOINLINE be_m256x2 be_load16_partial(const void *base, size_t i,
                                                                     size_t n,
                                                                     be_float_format format) {
  size_t size = be_float_bytes(format);
  float padded[BE_LANES] = {0};
  memcpy(padded, (const uint8_t *)base + i * size, n * size);
  return be_load16(padded, 0, format);
}

BE_AVX2_INLINE be_m256x2 be_add_products(be_m256x2 sum, be_m256x2 a, be_m256x2 b) {
  return (be_m256x2){_mm256_add_ps(sum.low, _mm256_mul_ps(a.low, b.low)),
                     _mm256_add_ps(sum.high, _mm256_mul_ps(a.high, b.high))};
}

// The tree's first two levels: lanes 0-3.
BE_AVX2_INLINE __m128 be_tree4(be_m256x2 x) {
  __m256 t8 = _mm256_add_ps(x.low, x.high);
  return _mm_add_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
}

BE_AVX2_INLINE float be_tree(be_m256x2 x) {
  __m128 t4 = be_tree4(x);
  __m128 t2 = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
  return _mm_cvtss_f32(_mm_add_ss(t2, _mm_movehdup_ps(t2)));
}

// Four trees at once: element i is the sum of the i-th argument.
BE_AVX2_INLINE __m128 be_tree_of_4(be_m256x2 a, be_m256x2 b, be_m256x2 c, be_m256x2 d) {
  __m128 a4 = be_tree4(a), b4 = be_tree4(b), c4 = be_tree4(c), d4 = be_tree4(d);
  __m128 ab = _mm_add_ps(_mm_movelh_ps(a4, b4), _mm_movehl_ps(b4, a4)); // a0 a1 b0 b1
  __m128 cd = _mm_add_ps(_mm_movelh_ps(c4, d4), _mm_movehl_ps(d4, c4));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
}

// be_exp of scalar/exp.h, operation by operation.
BE_AVX2_INLINE __m256 be_exp8(__m256 x) {
  const __m256 magic = _mm256_set1_ps(BE_ROUND_MAGIC);
  __m256 shifted = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(BE_EXP_LOG2E)), magic);
  __m256 n = _mm256_sub_ps(shifted, magic);
  __m256 r = _mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(BE_EXP_LN2_HIGH)));
  r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(BE_EXP_LN2_LOW)));
  __m256 q = _mm256_set1_ps(BE_EXP_Q5);
  q = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(BE_EXP_Q4));
  q = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(BE_EXP_Q3));
  q = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(BE_EXP_Q2));
  q = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(BE_EXP_Q1));
  q = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(BE_EXP_Q0));
  __m256 p = _mm256_add_ps(_mm256_mul_ps(q, _mm256_mul_ps(r, r)), r);
  p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
  __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  __m256 finite = _mm256_cmp_ps(x, _mm256_set1_ps(BE_EXP_MAX), _CMP_LE_OQ);
  y = _mm256_blendv_ps(_mm256_mul_ps(x, _mm256_set1_ps(INFINITY)), y, finite);
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(BE_EXP_MIN), _CMP_LT_OQ), y);
}

// Four consecutive activations in every 32-bit lane.
BE_AVX2_INLINE __m256i be_broadcast4(const int8_t *q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm256_set1_epi32(four);
}

#endif
