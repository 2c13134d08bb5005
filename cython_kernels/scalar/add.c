// SPDX-License-Identifier: MIT
// y = a + b.
#include "kernels.h"

void add_f32_scalar(float *y, const float *a, const float *b, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = a[i] + b[i];
}
