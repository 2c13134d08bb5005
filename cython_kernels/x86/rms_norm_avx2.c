// SPDX-License-Identifier: MIT
// RMS norm, alone and fused with quantisation, see scalar/rms_norm.c.
#include "x86/quantize_avx2.h"

BE_AVX2_INLINE float reciprocal_rms(const float *x, size_t n, float eps) {
  be_m256x2 sum = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    be_m256x2 v = be_load16(x, i, BE_FORMAT_F32);
    sum = be_add_products(sum, v, v);
  }
  if (i < n) {
    be_m256x2 v = be_load16_partial(x, i, n - i, BE_FORMAT_F32);
    sum = be_add_products(sum, v, v);
  }
  return 1.0f / sqrtf(be_tree(sum) / (float)n + eps);
}

BE_AVX2 void rms_norm_f32_avx2(float *y, const float *x, const float *gain, size_t n, float eps) {
  float r = reciprocal_rms(x, n, eps);
  const __m256 factor = _mm256_set1_ps(r);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
    _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(gain + i)));
  }
  for (; i < n; i++)
    y[i] = (x[i] * r) * gain[i];
}

BE_AVX2_INLINE be_m256x2 normalize16(be_m256x2 x, be_m256x2 gain, __m256 r) {
  return (be_m256x2){_mm256_mul_ps(_mm256_mul_ps(x.low, r), gain.low),
                     _mm256_mul_ps(_mm256_mul_ps(x.high, r), gain.high)};
}

BE_AVX2 void rms_norm_quantize_i8_avx2(int8_t *q, float *s, int32_t *q_sum, const float *x,
                                       const float *gain, size_t n, float eps) {
  size_t whole = n & ~(size_t)15, rest = n & 15;
  const __m256 r = _mm256_set1_ps(reciprocal_rms(x, n, eps));
  be_m256x2 tail = normalize16(be_load16_partial(x, whole, rest, BE_FORMAT_F32),
                               be_load16_partial(gain, whole, rest, BE_FORMAT_F32), r);
  __m256 m0 = _mm256_set1_ps(BE_ABSMAX_MIN), m1 = m0;
  for (size_t i = 0; i < whole; i += 16) {
    be_m256x2 v = normalize16(be_load16(x, i, BE_FORMAT_F32), be_load16(gain, i, BE_FORMAT_F32), r);
    m0 = be_absmax8(m0, v.low);
    m1 = be_absmax8(m1, v.high);
  }
  m0 = be_absmax8(m0, tail.low);
  m1 = be_absmax8(m1, tail.high);

  float scale = 127.0f / be_max8(_mm256_max_ps(m0, m1));
  const __m256 factor = _mm256_set1_ps(scale);
  __m256i sum = _mm256_setzero_si256();
  for (size_t i = 0; i < whole; i += 16) {
    be_m256x2 v = normalize16(be_load16(x, i, BE_FORMAT_F32), be_load16(gain, i, BE_FORMAT_F32), r);
    sum = _mm256_add_epi32(sum, be_quantize16(q + i, v, factor));
  }
  if (rest)
    sum = _mm256_add_epi32(sum, be_quantize16(q + whole, tail, factor));
  *s = scale;
  *q_sum = be_sum8(sum);
}
