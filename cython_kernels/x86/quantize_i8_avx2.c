// SPDX-License-Identifier: MIT
// absmax int8 quantisation of one row, see scalar/quantize_i8.c. A ragged tail is read into 16
// lanes with zeros behind it, which round to the zeros that the padding of q must hold.
#include "x86/quantize_avx2.h"

BE_AVX2 void quantize_i8_avx2(int8_t *q, float *s, int32_t *q_sum, const float *x, size_t n) {
  size_t whole = n & ~(size_t)15, rest = n & 15;
  be_m256x2 tail = be_load16_partial(x, whole, rest, BE_FORMAT_F32);
  __m256 m0 = _mm256_set1_ps(BE_ABSMAX_MIN), m1 = m0;
  for (size_t i = 0; i < whole; i += 16) {
    be_m256x2 v = be_load16(x, i, BE_FORMAT_F32);
    m0 = be_absmax8(m0, v.low);
    m1 = be_absmax8(m1, v.high);
  }
  m0 = be_absmax8(m0, tail.low);
  m1 = be_absmax8(m1, tail.high);

  float scale = 127.0f / be_max8(_mm256_max_ps(m0, m1));
  const __m256 factor = _mm256_set1_ps(scale);
  __m256i sum = _mm256_setzero_si256();
  for (size_t i = 0; i < whole; i += 16)
    sum = _mm256_add_epi32(sum, be_quantize16(q + i, be_load16(x, i, BE_FORMAT_F32), factor));
  if (rest)
    sum = _mm256_add_epi32(sum, be_quantize16(q + whole, tail, factor));
  *s = scale;
  *q_sum = be_sum8(sum);
}
