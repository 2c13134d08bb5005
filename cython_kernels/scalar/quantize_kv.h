// SPDX-License-Identifier: MIT
// One group of an int4 KV cache row: 32 elements, codes -8 .. 7 and a bfloat16 scale.
//
//   the element of the largest magnitude (the positive one of two equals) gets code -8:
//   scale = bf16_rne(max(magnitude, 1e-30) / 8), negative when that element is positive
//   code  = clamp(round_half_even(x * (1 / scale)), -8, 7);  x is read back as code * scale
//
// Sixteen levels instead of the fifteen of a symmetric code. bfloat16 keeps float32's range, and
// 4 bits times 8 bits is exact in float32, so that reading back rounds nothing. Codes divide by the
// rounded scale: its error is no error of the elements. A NaN counts for nothing and becomes 0; an
// infinity gives an infinite scale and codes 0, which reads back as NaN.
#ifndef BITNET_EDGE_SCALAR_QUANTIZE_KV_H
#define BITNET_EDGE_SCALAR_QUANTIZE_KV_H

#include "scalar/half.h"

#define BE_KV_I4_MIN 1e-30f // far from denormals, also after / 8 and 1 / x

// `low` <= 0 <= `high`: the extremes of the group, zero included.
static inline uint16_t be_kv_i4_scale(float low, float high) {
  float magnitude = -low > high ? -low : high;
  magnitude = magnitude > BE_KV_I4_MIN ? magnitude : BE_KV_I4_MIN;
  uint32_t bits = be_float_bits(magnitude * 0.125f);
  bits += 0x7fff + (bits >> 16 & 1);
  return (uint16_t)(bits >> 16 | (-low > high ? 0 : 0x8000));
}

// The code plus 8. Clamping first gives the same integer and keeps the conversion in range.
static inline uint8_t be_kv_i4_code(float x, float inverse) {
  float v = x * inverse;
  v = v == v ? v : 0.0f;
  v = v > -8.0f ? v : -8.0f;
  v = v < 7.0f ? v : 7.0f;
  return (uint8_t)((v + BE_ROUND_MAGIC) - BE_ROUND_MAGIC + 8.0f);
}

#endif
