// SPDX-License-Identifier: MIT
// y[i] = (float(acc[i]) / s) * w_scale (+ bias[i]), every operation rounded to float32.
//
// A division, not a product with 1 / s: the reference implementation divides. s = 0 (an infinite
// activation) gives NaN or infinity, never undefined behaviour.
#include "kernels.h"

void dequantize_f32_scalar(float *y, const int32_t *acc, size_t n, float s, float w_scale,
                           const float *bias) {
  for (size_t i = 0; i < n; i++) {
    float value = ((float)acc[i] / s) * w_scale;
    y[i] = bias ? value + bias[i] : value;
  }
}
