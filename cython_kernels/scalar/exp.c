// SPDX-License-Identifier: MIT
// y = exp(x), see exp.h.
#include "kernels.h"
#include "scalar/exp.h"

void exp_f32_scalar(float *y, const float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = be_exp(x[i]);
}
