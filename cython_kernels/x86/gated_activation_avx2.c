// SPDX-License-Identifier: MIT
// Gated activations, see scalar/gated_activation.c.
#include "x86/avx2.h"

BE_AVX2 void relu2_mul_f32_avx2(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    // maxps returns its second operand where either is a NaN: 0 > g ? 0 : g exactly.
    __m256 g = _mm256_max_ps(_mm256_setzero_ps(), _mm256_loadu_ps(gate + i));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(g, g), _mm256_loadu_ps(up + i)));
  }
  for (; i < n; i++) {
    float g = 0.0f > gate[i] ? 0.0f : gate[i];
    y[i] = (g * g) * up[i];
  }
}

BE_AVX2 void silu_mul_f32_avx2(float *y, const float *gate, const float *up, size_t n) {
  const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 g = _mm256_loadu_ps(gate + i);
    __m256 sigmoid_inverse = _mm256_add_ps(one, be_exp8(_mm256_xor_ps(g, sign)));
    __m256 silu = _mm256_div_ps(g, sigmoid_inverse);
    _mm256_storeu_ps(y + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
  for (; i < n; i++)
    y[i] = (gate[i] / (1.0f + be_exp(-gate[i]))) * up[i];
}
