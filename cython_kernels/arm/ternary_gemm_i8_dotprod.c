// SPDX-License-Identifier: MIT
// acc[t] = W q[t] over P16 (layout: scalar/ternary_gemv_i8.c) with SDOT.
//
// Codes are unpacked in registers and meet several rows of q: tiles of 8 rows x 8 rows of q, or
// 16 x 2..4 for what is left, 16 int32x4 sums at most. No overflow: |sum| <= 2 * 128 * k < 2^31
// for k < 2^23.
#include "kernels.h"

#if BE_ARCH_ARM64
#include "arm/ternary_dotprod.h"

enum { MAX_SUMS = 16, MAX_TOKENS = 8, PREFETCH_BYTES = 2048 };

// A tile of `groups` times four rows and `tokens` rows of q, both constants; `w` begins at the
// first of these rows. Arrays have constant indices after unrolling: they are registers.
BE_DOTPROD_INLINE void tile_times(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                  size_t k_blocks, const int8_t *q, size_t q_stride,
                                  const int32_t *q_sum, const int groups, const int tokens) {
  int32x4_t sums[MAX_SUMS];
  BE_UNROLL for (int i = 0; i < groups * tokens; i++) { sums[i] = vdupq_n_s32(0); }
  for (size_t b = 0; b < k_blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    int8x16_t a[MAX_TOKENS];
    __builtin_prefetch(w + PREFETCH_BYTES);
    BE_UNROLL for (int t = 0; t < tokens; t++) { a[t] = vld1q_s8(q + t * q_stride); }
    BE_UNROLL for (int g = 0; g < groups; g++) {
      uint8x16_t u = vld1q_u8(w + 16 * g);
      uint8x16_t c0 = be_field(u, 0), c1 = be_field(u, 1);
      uint8x16_t c2 = be_field(u, 2), c3 = be_field(u, 3);
      BE_UNROLL for (int t = 0; t < tokens; t++) {
        int32x4_t sum = sums[g * tokens + t];
        BE_SDOT_LANE(sum, c0, a[t], 0);
        BE_SDOT_LANE(sum, c1, a[t], 1);
        BE_SDOT_LANE(sum, c2, a[t], 2);
        BE_SDOT_LANE(sum, c3, a[t], 3);
        sums[g * tokens + t] = sum;
      }
    }
  }
  BE_UNROLL for (int g = 0; g < groups; g++) {
    BE_UNROLL for (int t = 0; t < tokens; t++) {
      vst1q_s32(acc + t * acc_stride + 4 * g,
                vsubq_s32(sums[g * tokens + t], vdupq_n_s32(q_sum[t])));
    }
  }
}

BE_DOTPROD void ternary_gemm_i8_dotprod(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                        size_t panel_stride, size_t n_panels, size_t k_blocks,
                                        const int8_t *q, size_t q_stride, const int32_t *q_sum,
                                        size_t m) {
  for (size_t p = 0; p < n_panels; p++, w += panel_stride, acc += BE_PANEL_ROWS) {
    size_t tokens;
    for (size_t t = 0; t < m; t += tokens) {
      int32_t *c = acc + t * acc_stride;
      const int8_t *a = q + t * q_stride;
      tokens = m - t >= 8 ? 8 : m - t >= 4 ? 4 : m - t;
      if (tokens == 8) {
        tile_times(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t, 2, 8);
        tile_times(c + 8, acc_stride, w + 32, k_blocks, a, q_stride, q_sum + t, 2, 8);
      } else if (tokens == 4) {
        tile_times(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t, 4, 4);
      } else if (tokens == 3) {
        tile_times(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t, 4, 3);
      } else if (tokens == 2) {
        tile_times(c, acc_stride, w, k_blocks, a, q_stride, q_sum + t, 4, 2);
      } else {
        ternary_gemv_i8_dotprod(c, w, panel_stride, 1, k_blocks, a, q_sum[t]);
      }
    }
  }
}
#endif
