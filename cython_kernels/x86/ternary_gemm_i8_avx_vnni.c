// SPDX-License-Identifier: MIT
// acc[t] = W q[t] over P16 (layout: scalar/ternary_gemv_i8.c) with AVX-VNNI.
//
// As ternary_gemm_i8_avx2.c, four rows of q at a time against one panel; vpdpbusd adds straight to
// int32, so that nothing is widened. No overflow: |sum| <= 2 * 128 * k < 2^31 for k < 2^23.
#include "x86/avx_vnni.h"

enum {
  MAX_TOKENS = 4,       // rows of q at a time
  PREFETCH_BYTES = 4096 // a panel is one stream
};

BE_AVX_VNNI_INLINE __m256i field(__m256i u, int f) {
  return _mm256_and_si256(_mm256_srli_epi16(u, 2 * f), _mm256_set1_epi8(3));
}

// BE_OPAQUE keeps gcc from copying every sum around each addition.
BE_AVX_VNNI_INLINE __m256i multiply_add(__m256i sum, __m256i codes, __m256i a) {
  sum = _mm256_dpbusd_avx_epi32(sum, codes, a);
  BE_OPAQUE(sum);
  return sum;
}

BE_AVX_VNNI_INLINE void store_rows(int32_t *acc, __m256i low, __m256i high, int32_t q_sum) {
  const __m256i bias = _mm256_set1_epi32(q_sum);
  _mm256_storeu_si256((__m256i *)acc, _mm256_sub_epi32(low, bias));
  _mm256_storeu_si256((__m256i *)(acc + 8), _mm256_sub_epi32(high, bias));
}

// acc = a panel times `tokens` (a constant, 2 .. 4) rows of q; lowN, highN: rows 0-7 and 8-15.
BE_AVX_VNNI_INLINE void panel_times(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                    size_t k_blocks, const int8_t *q, size_t q_stride,
                                    const int32_t *q_sum, const int tokens) {
  __m256i low0 = _mm256_setzero_si256(), low1 = low0, low2 = low0, low3 = low0;
  __m256i high0 = low0, high1 = low0, high2 = low0, high3 = low0;
  for (size_t b = 0; b < k_blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    __m256i u = _mm256_loadu_si256((const __m256i *)w);
    __m256i v = _mm256_loadu_si256((const __m256i *)(w + 32));
    _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
    BE_UNROLL for (int f = 0; f < 4; f++) {
      __m256i low = field(u, f), high = field(v, f), a = be_broadcast4(q + 4 * f);
      low0 = multiply_add(low0, low, a);
      high0 = multiply_add(high0, high, a);
      a = be_broadcast4(q + 4 * f + q_stride);
      low1 = multiply_add(low1, low, a);
      high1 = multiply_add(high1, high, a);
      if (tokens > 2) {
        a = be_broadcast4(q + 4 * f + 2 * q_stride);
        low2 = multiply_add(low2, low, a);
        high2 = multiply_add(high2, high, a);
      }
      if (tokens > 3) {
        a = be_broadcast4(q + 4 * f + 3 * q_stride);
        low3 = multiply_add(low3, low, a);
        high3 = multiply_add(high3, high, a);
      }
    }
  }
  store_rows(acc, low0, high0, q_sum[0]);
  store_rows(acc + acc_stride, low1, high1, q_sum[1]);
  if (tokens > 2)
    store_rows(acc + 2 * acc_stride, low2, high2, q_sum[2]);
  if (tokens > 3)
    store_rows(acc + 3 * acc_stride, low3, high3, q_sum[3]);
}

// One function per number of rows: alone, each gets all registers.
#define DEFINE_PANEL_TIMES(tokens)                                                                 \
  BE_AVX_VNNI_NOINLINE void panel_times_##tokens(                                                  \
      int32_t *acc, size_t acc_stride, const uint8_t *w, size_t k_blocks, const int8_t *q,         \
      size_t q_stride, const int32_t *q_sum) {                                                     \
    panel_times(acc, acc_stride, w, k_blocks, q, q_stride, q_sum, tokens);                         \
  }
DEFINE_PANEL_TIMES(2)
DEFINE_PANEL_TIMES(3)
DEFINE_PANEL_TIMES(4)

BE_AVX_VNNI void ternary_gemm_i8_avx_vnni(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                          size_t panel_stride, size_t n_panels, size_t k_blocks,
                                          const int8_t *q, size_t q_stride, const int32_t *q_sum,
                                          size_t m) {
  for (size_t p = 0; p < n_panels; p++, w += panel_stride, acc += BE_PANEL_ROWS)
    for (size_t t = 0; t < m; t += MAX_TOKENS) {
      int32_t *c = acc + t * acc_stride;
      const int8_t *a = q + t * q_stride;
      size_t tokens = m - t < MAX_TOKENS ? m - t : MAX_TOKENS;
      if (tokens == 1)
        ternary_gemv_i8_avx_vnni(c, w, panel_stride, 1, k_blocks, a, q_sum[t]);
      else if (tokens == 2)
        panel_times_2(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t);
      else if (tokens == 3)
        panel_times_3(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t);
      else
        panel_times_4(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t);
    }
}
