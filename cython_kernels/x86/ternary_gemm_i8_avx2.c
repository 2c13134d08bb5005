// SPDX-License-Identifier: MIT
// acc[t] = W q[t] over P16 (layout: scalar/ternary_gemv_i8.c) for m rows of q.
//
// Up to four rows of q at a time meet one panel, whose codes are unpacked in registers: every
// field is shifted down here, since the shifts are shared by the rows. A tile unpacked to the
// first-level cache for all rows of q was measured and is no faster at any m.
//
//              q row t   t+1    t+2    t+3        one int16 accumulator each, 16 pairs of columns
//   rows 0-7   | low0 | low1 | low2 | low3 |
//   rows 8-15  | high0| high1| high2| high3|
//
// int16 bounds: one maddubs of codes 0..2 gives at most 2 * 2 * 128 = 512 in magnitude; 4 fields
// of 16 blocks add up 64 of them, 32768 = -INT16_MIN. So sums are widened into acc every 16
// blocks. The hostile code 3 wraps around and gives a wrong number, nothing else.
#include "x86/avx2.h"

enum {
  CHUNK_BLOCKS = 16,
  MAX_TOKENS = 4,       // rows of q at a time
  PREFETCH_BYTES = 4096 // a panel is one stream
};

BE_AVX2_INLINE __m256i field(__m256i u, int f) {
  return _mm256_and_si256(_mm256_srli_epi16(u, 2 * f), _mm256_set1_epi8(3));
}

// BE_OPAQUE keeps gcc from reassociating the sums, after which its registers run out.
BE_AVX2_INLINE __m256i multiply_add(__m256i sum, __m256i codes, __m256i a) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, a));
  BE_OPAQUE(sum);
  return sum;
}

// acc[0..16) += the sums of neighbouring int16.
BE_AVX2_INLINE void add_widened(int32_t *acc, __m256i low, __m256i high) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256i *rows = (__m256i *)acc;
  low = _mm256_add_epi32(_mm256_loadu_si256(rows), _mm256_madd_epi16(low, one));
  high = _mm256_add_epi32(_mm256_loadu_si256(rows + 1), _mm256_madd_epi16(high, one));
  _mm256_storeu_si256(rows, low);
  _mm256_storeu_si256(rows + 1, high);
}

// acc += `blocks` blocks of a panel times `tokens` (a constant, 2 .. 4) rows of q.
BE_AVX2_INLINE void chunk_times(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t blocks,
                                const int8_t *q, size_t q_stride, const int tokens) {
  __m256i low0 = _mm256_setzero_si256(), low1 = low0, low2 = low0, low3 = low0;
  __m256i high0 = low0, high1 = low0, high2 = low0, high3 = low0;
  for (size_t b = 0; b < blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
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
  add_widened(acc, low0, high0);
  add_widened(acc + acc_stride, low1, high1);
  if (tokens > 2)
    add_widened(acc + 2 * acc_stride, low2, high2);
  if (tokens > 3)
    add_widened(acc + 3 * acc_stride, low3, high3);
}

// One function per number of rows: alone, each gets all registers.
#define DEFINE_PANEL_TIMES(tokens)                                                                 \
  BE_AVX2_NOINLINE void panel_times_##tokens(int32_t *acc, size_t acc_stride, const uint8_t *w,    \
                                             size_t k_blocks, const int8_t *q, size_t q_stride) {  \
    for (size_t b = 0; b < k_blocks; b += CHUNK_BLOCKS)                                            \
      chunk_times(acc, acc_stride, w + b * BE_BLOCK_BYTES,                                         \
                  k_blocks - b < CHUNK_BLOCKS ? k_blocks - b : CHUNK_BLOCKS, q + b * BE_BLOCK_K,   \
                  q_stride, tokens);                                                               \
  }
DEFINE_PANEL_TIMES(2)
DEFINE_PANEL_TIMES(3)
DEFINE_PANEL_TIMES(4)

BE_AVX2_INLINE void begin_acc(int32_t *acc, int32_t q_sum) {
  for (size_t r = 0; r < BE_PANEL_ROWS; r += 8)
    _mm256_storeu_si256((__m256i *)(acc + r), _mm256_set1_epi32((int32_t)(0u - (uint32_t)q_sum)));
}

BE_AVX2 void ternary_gemm_i8_avx2(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                  size_t panel_stride, size_t n_panels, size_t k_blocks,
                                  const int8_t *q, size_t q_stride, const int32_t *q_sum,
                                  size_t m) {
  for (size_t p = 0; p < n_panels; p++, w += panel_stride, acc += BE_PANEL_ROWS)
    for (size_t t = 0; t < m; t += MAX_TOKENS) {
      int32_t *c = acc + t * acc_stride;
      const int8_t *a = q + t * q_stride;
      size_t tokens = m - t < MAX_TOKENS ? m - t : MAX_TOKENS;
      if (tokens == 1) {
        ternary_gemv_i8_avx2(c, w, panel_stride, 1, k_blocks, a, q_sum[t]);
        continue;
      }
      for (size_t i = 0; i < tokens; i++)
        begin_acc(c + i * acc_stride, q_sum[t + i]);
      if (tokens == 2)
        panel_times_2(c, acc_stride, w, k_blocks, a, q_stride);
      else if (tokens == 3)
        panel_times_3(c, acc_stride, w, k_blocks, a, q_stride);
      else
        panel_times_4(c, acc_stride, w, k_blocks, a, q_stride);
    }
}
