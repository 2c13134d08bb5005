// SPDX-License-Identifier: MIT
// One row of one head for the int4 cache, see scalar/quantize_kv_i4.c.
#include "scalar/quantize_kv.h"
#include "x86/avx2.h"

BE_AVX2_INLINE float smallest(be_m256x2 a, be_m256x2 b) {
  // minps returns its second operand where the first is a NaN: x < low ? x : low.
  __m256 m = _mm256_min_ps(a.low, _mm256_setzero_ps());
  m = _mm256_min_ps(b.high, _mm256_min_ps(b.low, _mm256_min_ps(a.high, m)));
  __m128 t = _mm_min_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  t = _mm_min_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_min_ss(t, _mm_movehdup_ps(t)));
}

BE_AVX2_INLINE float largest(be_m256x2 a, be_m256x2 b) {
  __m256 m = _mm256_max_ps(a.low, _mm256_setzero_ps());
  m = _mm256_max_ps(b.high, _mm256_max_ps(b.low, _mm256_max_ps(a.high, m)));
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

BE_AVX2_INLINE __m256i code8(__m256 x, __m256 inverse) {
  __m256 v = _mm256_mul_ps(x, inverse);
  v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q)); // NaN becomes 0
  v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-8.0f)), _mm256_set1_ps(7.0f));
  return _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(8)); // round half to even
}

// 16 codes, plus 8, as bytes.
BE_AVX2_INLINE __m128i code16(be_m256x2 x, __m256 inverse) {
  __m256i words = _mm256_packs_epi32(code8(x.low, inverse), code8(x.high, inverse));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

BE_AVX2_INLINE void quantize_group(uint8_t *codes, uint16_t *scale, be_m256x2 a, be_m256x2 b) {
  *scale = be_kv_i4_scale(smallest(a, b), largest(a, b));
  __m256 inverse = _mm256_set1_ps(1.0f / be_bf16_to_f32(*scale));
  __m128i high = _mm_slli_epi16(code16(b, inverse), 4); // no byte exceeds 15
  _mm_storeu_si128((__m128i *)codes, _mm_or_si128(code16(a, inverse), high));
}

BE_AVX2 void quantize_kv_i4_avx2(uint8_t *codes, uint16_t *scales, const float *x,
                                 size_t head_dim) {
  size_t d = 0;
  for (; d + BE_KV_GROUP <= head_dim; d += BE_KV_GROUP, codes += BE_KV_GROUP / 2)
    quantize_group(codes, scales++, be_load16(x, d, BE_FORMAT_F32),
                   be_load16(x, d + 16, BE_FORMAT_F32));
  if (d < head_dim) {
    float padded[BE_KV_GROUP] = {0};
    memcpy(padded, x + d, (head_dim - d) * sizeof *x);
    quantize_group(codes, scales, be_load16(padded, 0, BE_FORMAT_F32),
                   be_load16(padded, 16, BE_FORMAT_F32));
  }
}
