// SPDX-License-Identifier: MIT
// Rotary position embedding of one head, NEOX pairing (i, i + half):
//
//   y[i]        = x[i] cos[i] - x[i + half] sin[i]
//   y[i + half] = x[i + half] cos[i] + x[i] sin[i]
//
// In place is allowed: both halves are read before either is written.
#include "kernels.h"

void rope_f32_scalar(float *y, const float *x, const float *cos, const float *sin, size_t half) {
  for (size_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    y[i] = a * cos[i] - b * sin[i];
    y[i + half] = b * cos[i] + a * sin[i];
  }
}
