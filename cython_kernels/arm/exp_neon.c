// SPDX-License-Identifier: MIT
// y = exp(x), see scalar/exp.h.
#include "arm/neon.h"

void exp_f32_neon(float *y, const float *x, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, be_exp4(vld1q_f32(x + i)));
  for (; i < n; i++)
    y[i] = be_exp(x[i]);
}
