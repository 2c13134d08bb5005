// SPDX-License-Identifier: MIT
// acc = W q over P16 (layout: scalar/ternary_gemv_i8.c) with SDOT.
//
// SDOT adds the four products of a row's bytes straight to int32, four rows at a time, and takes
// its activations from a lane: one load of q serves a whole block. Fields 1 and 2 stay where they
// lie, 4 and 16 times too large, with accumulators of their own (at 64, field 3 would not fit
// int8):
//
//   sum_1  += sdot(u & 03, a0) + sdot(u >> 6, a3)
//   sum_4  += sdot(u & 0c, a1)
//   sum_16 += sdot(u & 30, a2)
//   acc = sum_1 + sum_4 / 4 + sum_16 / 16 - sum(q)        exact divisions
//
// No overflow: |sum_16| <= 2 * 16 * 128 * k / 4 <= 2^31 for k <= 2^21; beyond, the NEON kernel
// takes over.
#include "kernels.h"

#if BE_ARCH_ARM64
#include "arm/ternary_dotprod.h"

enum {
  MAX_BLOCKS = 1 << 17, // k <= 2^21
  PREFETCH_BYTES = 4096 // a panel is one stream
};

typedef struct four_rows {
  int32x4_t sum_1, sum_4, sum_16;
} four_rows;

BE_DOTPROD_INLINE four_rows add_rows(four_rows s, uint8x16_t u, int8x16_t a) {
  BE_SDOT_LANE(s.sum_1, vandq_u8(u, vdupq_n_u8(0x03)), a, 0);
  BE_SDOT_LANE(s.sum_4, vandq_u8(u, vdupq_n_u8(0x0c)), a, 1);
  BE_SDOT_LANE(s.sum_16, vandq_u8(u, vdupq_n_u8(0x30)), a, 2);
  BE_SDOT_LANE(s.sum_1, vshrq_n_u8(u, 6), a, 3);
  return s;
}

BE_DOTPROD_INLINE void store_rows(int32_t *acc, four_rows s, int32_t q_sum) {
  int32x4_t sum = vsraq_n_s32(vsraq_n_s32(s.sum_1, s.sum_4, 2), s.sum_16, 4);
  vst1q_s32(acc, vsubq_s32(sum, vdupq_n_s32(q_sum)));
}

BE_DOTPROD_INLINE void panel_times(int32_t *acc, const uint8_t *w, size_t k_blocks, const int8_t *q,
                                   int32_t q_sum) {
  const int32x4_t zero = vdupq_n_s32(0);
  four_rows s0 = {zero, zero, zero}, s1 = s0, s2 = s0, s3 = s0;
  for (size_t b = 0; b < k_blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    int8x16_t a = vld1q_s8(q);
    __builtin_prefetch(w + PREFETCH_BYTES);
    s0 = add_rows(s0, vld1q_u8(w), a);
    s1 = add_rows(s1, vld1q_u8(w + 16), a);
    s2 = add_rows(s2, vld1q_u8(w + 32), a);
    s3 = add_rows(s3, vld1q_u8(w + 48), a);
  }
  store_rows(acc, s0, q_sum);
  store_rows(acc + 4, s1, q_sum);
  store_rows(acc + 8, s2, q_sum);
  store_rows(acc + 12, s3, q_sum);
}

BE_DOTPROD void ternary_gemv_i8_dotprod(int32_t *acc, const uint8_t *w, size_t panel_stride,
                                        size_t n_panels, size_t k_blocks, const int8_t *q,
                                        int32_t q_sum) {
  if (k_blocks > MAX_BLOCKS) {
    ternary_gemv_i8_neon(acc, w, panel_stride, n_panels, k_blocks, q, q_sum);
    return;
  }
  for (size_t p = 0; p < n_panels; p++)
    panel_times(acc + p * BE_PANEL_ROWS, w + p * panel_stride, k_blocks, q, q_sum);
}
#endif
