// SPDX-License-Identifier: MIT
// acc[t] = W q[t] over P16 (layout: scalar/ternary_gemv_i8.c) with ARMv8.0 or 32-bit NEON.
//
// Four rows meet up to four rows of q at a time, codes unpacked in registers. Every field is
// shifted down here, since the shifts are shared by the rows of q:
//
//   c_f = (u >> 2f) & 03;  sum_t += c_f * a_t,f        one int16 lane for each byte
//
// A product is at most 2 * 128 = 256 in magnitude, four of them per block, 32 blocks give 32768 =
// -INT16_MIN: sums are added to acc every 32 blocks. The hostile code 3 wraps around and gives a
// wrong number, nothing else.
#include "arm/ternary_neon.h"

enum {
  CHUNK_BLOCKS = 32,
  MAX_TOKENS = 4, // rows of q at a time
};

BE_INLINE uint8x16_t field(uint8x16_t u, const int f) {
  const uint8x16_t mask = vdupq_n_u8(3);
  return f == 0   ? vandq_u8(u, mask)
         : f == 1 ? vandq_u8(vshrq_n_u8(u, 2), mask)
         : f == 2 ? vandq_u8(vshrq_n_u8(u, 4), mask)
                  : vshrq_n_u8(u, 6);
}

// acc[t][0..4) += `blocks` blocks of four rows times `tokens` (a constant, 2 .. 4) rows of q.
BE_INLINE void rows_times(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t blocks,
                          const int8_t *q, size_t q_stride, const int tokens) {
  be_four_rows s0 = be_zero_rows(), s1 = s0, s2 = s0, s3 = s0;
  for (size_t b = 0; b < blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    uint8x16_t u = vld1q_u8(w);
    BE_UNROLL for (int f = 0; f < 4; f++) {
      uint8x16_t codes = field(u, f);
      s0 = be_multiply_add(s0, codes, be_broadcast4(q + 4 * f));
      s1 = be_multiply_add(s1, codes, be_broadcast4(q + 4 * f + q_stride));
      if (tokens > 2)
        s2 = be_multiply_add(s2, codes, be_broadcast4(q + 4 * f + 2 * q_stride));
      if (tokens > 3)
        s3 = be_multiply_add(s3, codes, be_broadcast4(q + 4 * f + 3 * q_stride));
    }
  }
  be_add_rows(acc, s0);
  be_add_rows(acc + acc_stride, s1);
  if (tokens > 2)
    be_add_rows(acc + 2 * acc_stride, s2);
  if (tokens > 3)
    be_add_rows(acc + 3 * acc_stride, s3);
}

BE_INLINE void panel_times(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t k_blocks,
                           const int8_t *q, size_t q_stride, const int tokens) {
  for (size_t b = 0; b < k_blocks; b += CHUNK_BLOCKS)
    for (size_t row = 0; row < BE_PANEL_ROWS; row += 4)
      rows_times(acc + row, acc_stride, w + b * BE_BLOCK_BYTES + 4 * row,
                 k_blocks - b < CHUNK_BLOCKS ? k_blocks - b : CHUNK_BLOCKS, q + b * BE_BLOCK_K,
                 q_stride, tokens);
}

void ternary_gemm_i8_neon(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t panel_stride,
                          size_t n_panels, size_t k_blocks, const int8_t *q, size_t q_stride,
                          const int32_t *q_sum, size_t m) {
  for (size_t p = 0; p < n_panels; p++, w += panel_stride, acc += BE_PANEL_ROWS)
    for (size_t t = 0; t < m; t += MAX_TOKENS) {
      int32_t *c = acc + t * acc_stride;
      const int8_t *a = q + t * q_stride;
      size_t tokens = m - t < MAX_TOKENS ? m - t : MAX_TOKENS;
      if (tokens == 1) {
        ternary_gemv_i8_neon(c, w, panel_stride, 1, k_blocks, a, q_sum[t]);
        continue;
      }
      for (size_t i = 0; i < tokens; i++)
        for (size_t r = 0; r < BE_PANEL_ROWS; r += 4)
          vst1q_s32(c + i * acc_stride + r, vdupq_n_s32((int32_t)(0u - (uint32_t)q_sum[t + i])));
      if (tokens == 2)
        panel_times(c, acc_stride, w, k_blocks, a, q_stride, 2);
      else if (tokens == 3)
        panel_times(c, acc_stride, w, k_blocks, a, q_stride, 3);
      else
        panel_times(c, acc_stride, w, k_blocks, a, q_stride, 4);
    }
}
