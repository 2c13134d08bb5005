// SPDX-License-Identifier: MIT
// Conversions between float32 and the two 16-bit floats, see half.h.
#include "kernels.h"
#include "scalar/half.h"

void bf16_to_f32_scalar(float *y, const uint16_t *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = be_bf16_to_f32(x[i]);
}

void f16_to_f32_scalar(float *y, const uint16_t *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = be_f16_to_f32(x[i]);
}

void f32_to_f16_scalar(uint16_t *y, const float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = be_f32_to_f16(x[i]);
}
