// SPDX-License-Identifier: MIT
// y = (float(acc) / s) * w_scale (+ bias), see scalar/dequantize.c.
#include "x86/avx2.h"

BE_AVX2 void dequantize_f32_avx2(float *y, const int32_t *acc, size_t n, float s, float w_scale,
                                 const float *bias) {
  const __m256 divisor = _mm256_set1_ps(s), factor = _mm256_set1_ps(w_scale);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 value = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(acc + i)));
    value = _mm256_mul_ps(_mm256_div_ps(value, divisor), factor);
    if (bias)
      value = _mm256_add_ps(value, _mm256_loadu_ps(bias + i));
    _mm256_storeu_ps(y + i, value);
  }
  for (; i < n; i++) {
    float value = ((float)acc[i] / s) * w_scale;
    y[i] = bias ? value + bias[i] : value;
  }
}
