// SPDX-License-Identifier: MIT
// What the AVX-512 kernels share: the target attribute, 16 float lanes in one register, their
// tree, exp, and loads of ragged tails, whose masked elements are neither read nor faulted on.
//
// AVX-512 contains fused multiply-add: -ffp-contract=off keeps compilers from using it.
#ifndef BITNET_EDGE_X86_AVX512_H
#define BITNET_EDGE_X86_AVX512_H

#include "x86/avx2.h"

#define BE_AVX512_TARGET target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#define BE_AVX512 __attribute__((BE_AVX512_TARGET))
#define BE_AVX512_INLINE static inline __attribute__((BE_AVX512_TARGET, always_inline))
#define BE_AVX512_NOINLINE static __attribute__((BE_AVX512_TARGET, noinline))

// The first n of 16 lanes.
BE_AVX512_INLINE __mmask16 be_first_lanes(size_t n) {
  return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
}

// Elements i .. i + 15 of `base` as float32; those outside the mask are not read and become 0.
BE_AVX512_INLINE __m512 be_load16_masked(const void *base, size_t i, __mmask16 mask,
                                         be_float_format format) {
  if (format == BE_FORMAT_F32)
    return _mm512_maskz_loadu_ps(mask, (const float *)base + i);
  __m256i x = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)base + i);
  if (format == BE_FORMAT_F16)
    return _mm512_cvtph_ps(x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

BE_AVX512_INLINE __m512 be_load16z(const void *base, size_t i, be_float_format format) {
  if (format == BE_FORMAT_F32)
    return _mm512_loadu_ps((const float *)base + i);
  __m256i x = _mm256_loadu_si256((const __m256i *)((const uint16_t *)base + i));
  if (format == BE_FORMAT_F16)
    return _mm512_cvtph_ps(x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

BE_AVX512_INLINE __m512 be_add_product16(__m512 sum, __m512 a, __m512 b) {
  return _mm512_add_ps(sum, _mm512_mul_ps(a, b));
}

// The halves, lanes 0-7 and 8-15: the rest of the tree is AVX2's.
BE_AVX512_INLINE be_m256x2 be_halves(__m512 x) {
  __m256d high = _mm512_extractf64x4_pd(_mm512_castps_pd(x), 1);
  return (be_m256x2){_mm512_castps512_ps256(x), _mm256_castpd_ps(high)};
}

BE_AVX512_INLINE float be_tree16(__m512 x) { return be_tree(be_halves(x)); }

// be_exp of scalar/exp.h, operation by operation.
BE_AVX512_INLINE __m512 be_exp16(__m512 x) {
  const __m512 magic = _mm512_set1_ps(BE_ROUND_MAGIC);
  __m512 shifted = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(BE_EXP_LOG2E)), magic);
  __m512 n = _mm512_sub_ps(shifted, magic);
  __m512 r = _mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(BE_EXP_LN2_HIGH)));
  r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(BE_EXP_LN2_LOW)));
  __m512 q = _mm512_set1_ps(BE_EXP_Q5);
  q = _mm512_add_ps(_mm512_mul_ps(q, r), _mm512_set1_ps(BE_EXP_Q4));
  q = _mm512_add_ps(_mm512_mul_ps(q, r), _mm512_set1_ps(BE_EXP_Q3));
  q = _mm512_add_ps(_mm512_mul_ps(q, r), _mm512_set1_ps(BE_EXP_Q2));
  q = _mm512_add_ps(_mm512_mul_ps(q, r), _mm512_set1_ps(BE_EXP_Q1));
  q = _mm512_add_ps(_mm512_mul_ps(q, r), _mm512_set1_ps(BE_EXP_Q0));
  __m512 p = _mm512_add_ps(_mm512_mul_ps(q, _mm512_mul_ps(r, r)), r);
  p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
  __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  __m512 y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  __mmask16 finite = _mm512_cmp_ps_mask(x, _mm512_set1_ps(BE_EXP_MAX), _CMP_LE_OQ);
  y = _mm512_mask_mov_ps(_mm512_mul_ps(x, _mm512_set1_ps(INFINITY)), finite, y);
  __mmask16 stays = _mm512_cmp_ps_mask(x, _mm512_set1_ps(BE_EXP_MIN), _CMP_NLT_UQ);
  return _mm512_maskz_mov_ps(stays, y);
}

// Four consecutive activations in every 32-bit lane.
BE_AVX512_INLINE __m512i be_broadcast4z(const int8_t *q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm512_set1_epi32(four);
}

#endif
