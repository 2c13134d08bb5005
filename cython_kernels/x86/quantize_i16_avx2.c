// SPDX-License-Identifier: MIT
// absmax int16 quantisation of one row, see scalar/quantize_i16.c. A ragged tail is read into 16
// lanes with zeros behind it, which round to the zeros that the padding of q must hold.
#include "x86/quantize_avx2.h"

BE_AVX2_INLINE __m256i round8(__m256 v, __m256 scale, __m256 limit) {
  v = _mm256_mul_ps(v, scale);
  v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q)); // NaN becomes 0
  v = _mm256_max_ps(v, _mm256_sub_ps(_mm256_setzero_ps(), limit));
  return _mm256_cvtps_epi32(_mm256_min_ps(v, limit)); // round half to even
}

// Stores 16 int16 and returns their sum in eight int32 parts.
BE_AVX2_INLINE __m256i round16(int16_t *q, be_m256x2 x, __m256 scale, __m256 limit) {
  __m256i low = round8(x.low, scale, limit), high = round8(x.high, scale, limit);
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  _mm256_storeu_si256((__m256i *)q, words);
  return _mm256_add_epi32(low, high);
}

// Elements i .. i + 15, zeros beyond n.
BE_AVX2_INLINE be_m256x2 load(const float *x, size_t i, size_t n) {
  if (i + BE_LANES <= n)
    return be_load16(x, i, BE_FORMAT_F32);
  return be_load16_partial(x, i < n ? i : n, i < n ? n - i : 0, BE_FORMAT_F32);
}

BE_AVX2 void quantize_i16_avx2(int16_t *q, float *s, int32_t *q_sum, const float *x, size_t n,
                               int32_t limit) {
  __m256 m0 = _mm256_set1_ps(BE_ABSMAX_MIN), m1 = m0;
  for (size_t i = 0; i < n; i += BE_LANES) {
    be_m256x2 v = load(x, i, n);
    m0 = be_absmax8(m0, v.low);
    m1 = be_absmax8(m1, v.high);
  }
  const float bound = (float)limit, factor = bound / be_max8(_mm256_max_ps(m0, m1));
  const __m256 scale = _mm256_set1_ps(factor), limits = _mm256_set1_ps(bound);
  for (size_t i = 0; i < n || i % BE_WIDE_K != 0; i += BE_I4_GROUP_K) {
    __m256i sum = round16(q + i, load(x, i, n), scale, limits);
    sum = _mm256_add_epi32(sum, round16(q + i + 16, load(x, i + 16, n), scale, limits));
    q_sum[i / BE_I4_GROUP_K] = be_sum8(sum);
  }
  *s = factor;
}
