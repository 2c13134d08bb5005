// SPDX-License-Identifier: MIT
// absmax and rounding of 16 activations, shared by quantize_i8_avx2 and rms_norm_quantize_i8_avx2.
#ifndef BITNET_EDGE_X86_QUANTIZE_AVX2_H
#define BITNET_EDGE_X86_QUANTIZE_AVX2_H

#include "scalar/quantize.h"
#include "x86/avx2.h"

// maxps returns its second operand where either is a NaN: a > m ? a : m exactly.
BE_AVX2_INLINE __m256 be_absmax8(__m256 m, __m256 x) {
  return _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), m);
}

// Maxima of numbers are the same in any order.
BE_AVX2_INLINE float be_max8(__m256 m) {
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

BE_AVX2_INLINE __m256i be_quantize8(__m256 v) {
  v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q)); // NaN becomes 0
  v = _mm256_max_ps(v, _mm256_set1_ps(-128.0f));
  v = _mm256_min_ps(v, _mm256_set1_ps(127.0f));
  return _mm256_cvtps_epi32(v); // round half to even
}

// Stores 16 int8 and returns their sum in eight int32 parts.
BE_AVX2_INLINE __m256i be_quantize16(int8_t *q, be_m256x2 x, __m256 scale) {
  __m256i low = be_quantize8(_mm256_mul_ps(x.low, scale));
  __m256i high = be_quantize8(_mm256_mul_ps(x.high, scale));
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128((__m128i *)q, bytes);
  return _mm256_add_epi32(low, high);
}

BE_AVX2_INLINE int32_t be_sum8(__m256i x) {
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}

#endif
