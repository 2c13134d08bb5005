// SPDX-License-Identifier: MIT
// absmax and rounding of 16 activations, shared by quantize_i8_neon and rms_norm_quantize_i8_neon.
#ifndef BITNET_EDGE_ARM_QUANTIZE_NEON_H
#define BITNET_EDGE_ARM_QUANTIZE_NEON_H

#include "arm/neon.h"
#include "scalar/quantize.h"

BE_INLINE float32x4_t be_absmax16(float32x4_t m, be_f32x16 x) {
  m = be_greater4(vabsq_f32(x.v0), m);
  m = be_greater4(vabsq_f32(x.v1), m);
  m = be_greater4(vabsq_f32(x.v2), m);
  return be_greater4(vabsq_f32(x.v3), m);
}

// be_quantize of scalar/quantize.h; the integer is read from the bits that the magic leaves.
BE_INLINE int32x4_t be_quantize4(float32x4_t v) {
  uint32x4_t number = vceqq_f32(v, v); // NaN becomes 0
  v = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), number));
  v = vminq_f32(vmaxq_f32(v, vdupq_n_f32(-128.0f)), vdupq_n_f32(127.0f));
  const float32x4_t magic = vdupq_n_f32(BE_ROUND_MAGIC);
  return vsubq_s32(vreinterpretq_s32_f32(vaddq_f32(v, magic)), vreinterpretq_s32_f32(magic));
}

// Stores 16 int8 and returns their sum in four int32 parts.
BE_INLINE int32x4_t be_quantize16(int8_t *q, be_f32x16 x, be_f32x16 scale) {
  x = be_multiply16(x, scale);
  int32x4_t i0 = be_quantize4(x.v0), i1 = be_quantize4(x.v1);
  int32x4_t i2 = be_quantize4(x.v2), i3 = be_quantize4(x.v3);
  int16x8_t low = vcombine_s16(vmovn_s32(i0), vmovn_s32(i1));
  int16x8_t high = vcombine_s16(vmovn_s32(i2), vmovn_s32(i3));
  vst1q_s8(q, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  return vaddq_s32(vaddq_s32(i0, i1), vaddq_s32(i2, i3));
}

BE_INLINE int32_t be_sum4(int32x4_t x) {
  int32x2_t t = vadd_s32(vget_low_s32(x), vget_high_s32(x));
  return vget_lane_s32(vpadd_s32(t, t), 0);
}

#endif
