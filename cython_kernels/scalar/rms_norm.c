// SPDX-License-Identifier: MIT
// r = 1 / sqrt(sum(x^2) / n + eps), y = (x * r) * gain; the fused form quantises y like
// quantize_i8 without storing it.
//
// The sum has the lanes and the tree of lanes.h; the square root and the divisions are IEEE's
// correctly rounded ones, equal everywhere. The fused form computes y twice, for absmax and for
// rounding: two multiplications cost less than a row of stores and loads.
#include <math.h>

#include "kernels.h"
#include "scalar/lanes.h"
#include "scalar/quantize.h"

static float reciprocal_rms(const float *x, size_t n, float eps) {
  be_lanes squares = {{0}};
  be_lanes_add_products(&squares, x, x, n);
  return 1.0f / sqrtf(be_lanes_sum(&squares) / (float)n + eps);
}

void rms_norm_f32_scalar(float *y, const float *x, const float *gain, size_t n, float eps) {
  float r = reciprocal_rms(x, n, eps);
  for (size_t i = 0; i < n; i++)
    y[i] = (x[i] * r) * gain[i];
}

void rms_norm_quantize_i8_scalar(int8_t *q, float *s, int32_t *q_sum, const float *x,
                                 const float *gain, size_t n, float eps) {
  float r = reciprocal_rms(x, n, eps);
  float m = BE_ABSMAX_MIN;
  for (size_t i = 0; i < n; i++)
    m = be_absmax(m, (x[i] * r) * gain[i]);
  float scale = 127.0f / m;
  int32_t sum = 0;
  for (size_t i = 0; i < n; i++) {
    q[i] = be_quantize((x[i] * r) * gain[i], scale);
    sum += q[i];
  }
  for (size_t i = n; i % BE_BLOCK_K != 0; i++)
    q[i] = 0;
  *s = scale;
  *q_sum = sum;
}
