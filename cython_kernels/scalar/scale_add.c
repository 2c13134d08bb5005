// SPDX-License-Identifier: MIT
// y[i] = y[i] + float(acc[i]) * scale[i], every operation rounded to float32.
//
// The sum over groups of columns that have scales of their own: one call for each group, in order.
// Compilers vectorise it as it stands.
#include "kernels.h"

void scale_add_f32_scalar(float *y, const int32_t *acc, const float *scale, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = y[i] + (float)acc[i] * scale[i];
}
