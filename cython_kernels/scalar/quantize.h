// SPDX-License-Identifier: MIT
// The one rounding of an activation to int8, shared by quantize_i8 and rms_norm_quantize_i8.
#ifndef BITNET_EDGE_SCALAR_QUANTIZE_H
#define BITNET_EDGE_SCALAR_QUANTIZE_H

#include "scalar/float_bits.h"

#define BE_ABSMAX_MIN 1e-5f

// The larger of m and |x|; a NaN is ignored.
static inline float be_absmax(float m, float x) {
  float a = be_bits_float(be_float_bits(x) & 0x7fffffff);
  return a > m ? a : m;
}

// clamp(round_half_even(x * s), -128, 127), NaN becomes 0. Clamping first gives the same integer
// and keeps the conversion in range.
static inline int8_t be_quantize(float x, float s) {
  float v = x * s;
  v = v == v ? v : 0.0f;
  v = v > -128.0f ? v : -128.0f;
  v = v < 127.0f ? v : 127.0f;
  return (int8_t)((v + BE_ROUND_MAGIC) - BE_ROUND_MAGIC);
}

#endif
