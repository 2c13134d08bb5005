// SPDX-License-Identifier: MIT
// The online softmax step between the blocks of every attention, see scalar/online_softmax.h.
#ifndef BITNET_EDGE_X86_ONLINE_SOFTMAX_AVX2_H
#define BITNET_EDGE_X86_ONLINE_SOFTMAX_AVX2_H

#include "scalar/online_softmax.h"
#include "x86/avx2.h"

// be_softmax_step over s[0..n), 32-byte aligned and -inf up to the next multiple of 16.
BE_AVX2_INLINE void be_softmax_step_avx2(be_softmax *state, float *s, size_t n, float *out,
                                         size_t head_dim) {
  __m256 m = _mm256_set1_ps(state->max);
  for (size_t j = 0; j < n; j += 8)
    m = _mm256_max_ps(_mm256_load_ps(s + j), m); // second operand where the score is a NaN
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  float b = _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));

  __m256 low = _mm256_loadu_ps(state->sum.lane), high = _mm256_loadu_ps(state->sum.lane + 8);
  if (b > state->max) {
    float c = be_exp(state->max - b);
    low = _mm256_mul_ps(low, _mm256_set1_ps(c));
    high = _mm256_mul_ps(high, _mm256_set1_ps(c));
    size_t d = 0;
    for (; d + 8 <= head_dim; d += 8)
      _mm256_storeu_ps(out + d, _mm256_mul_ps(_mm256_loadu_ps(out + d), _mm256_set1_ps(c)));
    for (; d < head_dim; d++)
      out[d] *= c;
    state->max = b;
  }
  const __m256 max = _mm256_set1_ps(state->max);
  for (size_t j = 0; j < n; j += 16) {
    __m256 p0 = be_exp8(_mm256_sub_ps(_mm256_load_ps(s + j), max));
    __m256 p1 = be_exp8(_mm256_sub_ps(_mm256_load_ps(s + j + 8), max));
    _mm256_store_ps(s + j, p0);
    _mm256_store_ps(s + j + 8, p1);
    low = _mm256_add_ps(low, p0);
    high = _mm256_add_ps(high, p1);
  }
  _mm256_storeu_ps(state->sum.lane, low);
  _mm256_storeu_ps(state->sum.lane + 8, high);
}

#endif
