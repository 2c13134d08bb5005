// SPDX-License-Identifier: MIT
// int8 multiply-accumulate into int16 for the two halves of a register.
#ifndef BITNET_EDGE_ARM_TERNARY_NEON_H
#define BITNET_EDGE_ARM_TERNARY_NEON_H

#include "arm/neon.h"

// Sums of four rows, one int16 lane for each of a row's four bytes: rows 0-1, rows 2-3.
typedef struct be_four_rows {
  int16x8_t r01, r23;
} be_four_rows;

BE_INLINE be_four_rows be_zero_rows(void) { return (be_four_rows){vdupq_n_s16(0), vdupq_n_s16(0)}; }

BE_INLINE be_four_rows be_multiply_add(be_four_rows sum, uint8x16_t codes, int8x16_t a) {
  int8x16_t c = vreinterpretq_s8_u8(codes);
  sum.r01 = vmlal_s8(sum.r01, vget_low_s8(c), vget_low_s8(a));
#if BE_ARCH_ARM64
  sum.r23 = vmlal_high_s8(sum.r23, c, a);
#else
  sum.r23 = vmlal_s8(sum.r23, vget_high_s8(c), vget_high_s8(a));
#endif
  return sum;
}

// acc[0..4) += the rows' sums over their four lanes.
BE_INLINE void be_add_rows(int32_t *acc, be_four_rows sum) {
  int32x4_t r01 = vpaddlq_s16(sum.r01), r23 = vpaddlq_s16(sum.r23);
  int32x4_t rows = vcombine_s32(vpadd_s32(vget_low_s32(r01), vget_high_s32(r01)),
                                vpadd_s32(vget_low_s32(r23), vget_high_s32(r23)));
  vst1q_s32(acc, vaddq_s32(vld1q_s32(acc), rows));
}

#endif
