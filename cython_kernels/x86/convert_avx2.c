// SPDX-License-Identifier: MIT
// Conversions between float32 and the 16-bit floats, see scalar/half.h. F16C agrees with it for
// every input but one: it keeps sign and payload of a NaN on the way down.
#include "scalar/half.h"
#include "x86/avx2.h"

BE_AVX2 void bf16_to_f32_avx2(float *y, const uint16_t *x, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, be_load8(x, i, BE_FORMAT_BF16));
  for (; i < n; i++)
    y[i] = be_bf16_to_f32(x[i]);
}

BE_AVX2 void f16_to_f32_avx2(float *y, const uint16_t *x, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, be_load8(x, i, BE_FORMAT_F16));
  for (; i < n; i++)
    y[i] = be_f16_to_f32(x[i]);
}

BE_AVX2 void f32_to_f16_avx2(uint16_t *y, const float *x, size_t n) {
  // The NaN that F16C turns into 0x7e00.
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    v = _mm256_blendv_ps(v, nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i *)(y + i), half);
  }
  for (; i < n; i++)
    y[i] = be_f32_to_f16(x[i]);
}
