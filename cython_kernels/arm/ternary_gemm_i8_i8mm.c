// SPDX-License-Identifier: MIT
// acc[t] = W q[t] over P16 (layout: scalar/ternary_gemv_i8.c) with SMMLA.
//
// SMMLA multiplies 2 rows x 8 columns by 8 columns x 2 rows of q. A register of weights holds four
// rows x 4 columns of a field; zipping two neighbouring fields gives pairs of rows x 8 columns:
//
//   c_f     | row 0 | row 1 | row 2 | row 3 |      4 bytes each, columns 4f .. 4f + 3
//   c_f+1   | row 0 | row 1 | row 2 | row 3 |
//   zip1 -> | row 0, 8 columns | row 1, 8 columns |      zip2 -> rows 2 and 3
//
// and zipping the halves of two rows of q gives 2 x 8 of q. Tiles are 8 rows x 8 or 4 rows of q,
// at most 16 sums of 2 x 2. No overflow: |sum| <= 2 * 128 * k < 2^31 for k < 2^23.
#include "kernels.h"

#if BE_ARCH_ARM64
#include "arm/ternary_dotprod.h"

enum { ROW_PAIRS = 4, MAX_TOKEN_PAIRS = 4, PREFETCH_BYTES = 2048 };

typedef struct row_pairs { // 2 x 8 codes each
  uint8x16_t pair[ROW_PAIRS];
} row_pairs;

// Rows 0-7 of `u` (rows 0-3) and `v` (rows 4-7), fields f and f + 1.
BE_I8MM_INLINE row_pairs unpack(uint8x16_t u, uint8x16_t v, const int f) {
  uint32x4_t u0 = vreinterpretq_u32_u8(be_field(u, f));
  uint32x4_t u1 = vreinterpretq_u32_u8(be_field(u, f + 1));
  uint32x4_t v0 = vreinterpretq_u32_u8(be_field(v, f));
  uint32x4_t v1 = vreinterpretq_u32_u8(be_field(v, f + 1));
  return (row_pairs){
      {vreinterpretq_u8_u32(vzip1q_u32(u0, u1)), vreinterpretq_u8_u32(vzip2q_u32(u0, u1)),
       vreinterpretq_u8_u32(vzip1q_u32(v0, v1)), vreinterpretq_u8_u32(vzip2q_u32(v0, v1))}};
}

// Eight rows times 2 * token_pairs (a constant) rows of q. Arrays have constant indices after
// unrolling: they are registers.
BE_I8MM_INLINE void tile_times(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t k_blocks,
                               const int8_t *q, size_t q_stride, const int32_t *q_sum,
                               const int token_pairs) {
  int32x4_t sums[ROW_PAIRS * MAX_TOKEN_PAIRS];
  BE_UNROLL for (int i = 0; i < ROW_PAIRS * token_pairs; i++) { sums[i] = vdupq_n_s32(0); }
  for (size_t b = 0; b < k_blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    uint8x16_t u = vld1q_u8(w), v = vld1q_u8(w + 16);
    __builtin_prefetch(w + PREFETCH_BYTES);
    BE_UNROLL for (int f = 0; f < 4; f += 2) {
      // Keeps gcc from unpacking both halves first, for which there are no registers.
      __asm__ volatile("" : "+w"(u), "+w"(v));
      row_pairs codes = unpack(u, v, f);
      BE_UNROLL for (int t = 0; t < token_pairs; t++) {
        int8x16_t a = vcombine_s8(vld1_s8(q + 2 * t * q_stride + 4 * f),
                                  vld1_s8(q + (2 * t + 1) * q_stride + 4 * f));
        BE_UNROLL for (int r = 0; r < ROW_PAIRS; r++) {
          BE_SMMLA(sums[r * token_pairs + t], codes.pair[r], a);
        }
      }
    }
  }
  BE_UNROLL for (int r = 0; r < ROW_PAIRS; r += 2) {
    BE_UNROLL for (int t = 0; t < token_pairs; t++) {
      // A sum is row 0 x tokens 0, 1, then row 1 x tokens 0, 1.
      int32x4_t rows01 = sums[r * token_pairs + t], rows23 = sums[(r + 1) * token_pairs + t];
      int32_t *c = acc + 2 * t * acc_stride + 2 * r;
      vst1q_s32(c, vsubq_s32(vuzp1q_s32(rows01, rows23), vdupq_n_s32(q_sum[2 * t])));
      vst1q_s32(c + acc_stride,
                vsubq_s32(vuzp2q_s32(rows01, rows23), vdupq_n_s32(q_sum[2 * t + 1])));
    }
  }
}

BE_I8MM void ternary_gemm_i8_i8mm(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                  size_t panel_stride, size_t n_panels, size_t k_blocks,
                                  const int8_t *q, size_t q_stride, const int32_t *q_sum,
                                  size_t m) {
  for (size_t p = 0; p < n_panels; p++, w += panel_stride, acc += BE_PANEL_ROWS) {
    size_t t = 0;
    for (; t + 8 <= m; t += 8)
      for (size_t row = 0; row < BE_PANEL_ROWS; row += 8)
        tile_times(acc + t * acc_stride + row, acc_stride, w + 4 * row, k_blocks, q + t * q_stride,
                   q_stride, q_sum + t, 4);
    for (; t + 4 <= m; t += 4)
      for (size_t row = 0; row < BE_PANEL_ROWS; row += 8)
        tile_times(acc + t * acc_stride + row, acc_stride, w + 4 * row, k_blocks, q + t * q_stride,
                   q_stride, q_sum + t, 2);
    if (t < m)
      ternary_gemm_i8_dotprod(acc + t * acc_stride, acc_stride, w, panel_stride, 1, k_blocks,
                              q + t * q_stride, q_stride, q_sum + t, m - t);
  }
}
#endif
