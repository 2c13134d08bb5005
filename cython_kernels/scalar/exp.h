// SPDX-License-Identifier: MIT
// exp for every kernel and every ISA: the same operations in the same order give the same bits.
//
//   n = rne(x * log2 e);  r = (x - n * LN2_HIGH) - n * LN2_LOW,  |r| <= 0.3466
//   p = 1 + (r + r^2 * q(r)),  q of degree 5 (Cephes' expf)
//   exp(x) = 2^n * p, the exponent added to p's bits
//
// LN2_HIGH has 10 significant bits, so n * LN2_HIGH is exact. Within [-87.3, 88.7228] the result
// is a normal number (no ISA's flush to zero can show) and n <= 128 is harmless: there p < 1.
// Below, 0; above, +inf; NaN stays NaN. exp(0) = 1 exactly. Over all 2.2e9 floats of the range the
// error is at most 0.991 ULP, and 0.8 % of the results are not the correctly rounded ones.
#ifndef BITNET_EDGE_SCALAR_EXP_H
#define BITNET_EDGE_SCALAR_EXP_H

#include <math.h>

#include "scalar/float_bits.h"

#define BE_EXP_MIN -87.3f
#define BE_EXP_MAX 0x1.62e42ep+6f // 88.72283, the largest float whose exp is finite
#define BE_EXP_LOG2E 0x1.715476p+0f
#define BE_EXP_LN2_HIGH 0.693359375f
#define BE_EXP_LN2_LOW -2.12194440e-4f
#define BE_EXP_Q5 1.9875691500e-4f
#define BE_EXP_Q4 1.3981999507e-3f
#define BE_EXP_Q3 8.3334519073e-3f
#define BE_EXP_Q2 4.1665795894e-2f
#define BE_EXP_Q1 1.6666665459e-1f
#define BE_EXP_Q0 5.0000001201e-1f

static inline float be_exp(float x) {
  float shifted = x * BE_EXP_LOG2E + BE_ROUND_MAGIC;
  float n = shifted - BE_ROUND_MAGIC;
  float r = (x - n * BE_EXP_LN2_HIGH) - n * BE_EXP_LN2_LOW;
  float q = BE_EXP_Q5;
  q = q * r + BE_EXP_Q4;
  q = q * r + BE_EXP_Q3;
  q = q * r + BE_EXP_Q2;
  q = q * r + BE_EXP_Q1;
  q = q * r + BE_EXP_Q0;
  float p = (q * (r * r) + r) + 1.0f;
  // The magic's own bits vanish in the shift; outside the range this is garbage, replaced below.
  float y = be_bits_float(be_float_bits(p) + (be_float_bits(shifted) << 23));
  if (!(x <= BE_EXP_MAX))
    y = x * INFINITY; // +inf, or NaN
  return x < BE_EXP_MIN ? 0.0f : y;
}

#endif
