// SPDX-License-Identifier: MIT
// y = (float(acc) / s) * w_scale (+ bias), see scalar/dequantize.c.
#include "arm/neon.h"

void dequantize_f32_neon(float *y, const int32_t *acc, size_t n, float s, float w_scale,
                         const float *bias) {
  const float32x4_t divisor = vdupq_n_f32(s), factor = vdupq_n_f32(w_scale);
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    float32x4_t value = be_divide4(vcvtq_f32_s32(vld1q_s32(acc + i)), divisor);
    value = vmulq_f32(value, factor);
    if (bias)
      value = vaddq_f32(value, vld1q_f32(bias + i));
    vst1q_f32(y + i, value);
  }
  for (; i < n; i++) {
    float value = ((float)acc[i] / s) * w_scale;
    y[i] = bias ? value + bias[i] : value;
  }
}
