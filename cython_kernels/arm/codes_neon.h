// SPDX-License-Identifier: MIT
// Rows of a quantised KV cache as float lanes, see scalar/attention_quantized.c for the layouts.
#ifndef BITNET_EDGE_ARM_CODES_NEON_H
#define BITNET_EDGE_ARM_CODES_NEON_H

#include "arm/neon.h"
#include "scalar/code_rows.h"

BE_INLINE be_f32x16 be_widen_i8(int8x16_t x) {
  int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
  return (be_f32x16){
      vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
      vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}

// Elements d .. d + 15 of row j, d a multiple of 16; int8 ones without their scale.
BE_INLINE be_f32x16 be_load_codes(be_code_rows rows, size_t j, size_t d, be_code_format format) {
  const uint8_t *row = rows.codes + j * rows.row_bytes;
  if (format == BE_CODES_I8)
    return be_widen_i8(vld1q_s8((const int8_t *)row + d));
  uint8x16_t codes = vld1q_u8(row + d / BE_KV_GROUP * (BE_KV_GROUP / 2));
  if (d % BE_KV_GROUP != 0)
    codes = vshrq_n_u8(codes, 4);
  else
    codes = vandq_u8(codes, vdupq_n_u8(15));
  uint16_t scale = ((const uint16_t *)rows.scales)[j * rows.row_scales + d / BE_KV_GROUP];
  int8x16_t signed_codes = vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8));
  return be_multiply16(be_widen_i8(signed_codes), be_splat16(be_bf16_to_f32(scale)));
}

#endif
