// SPDX-License-Identifier: MIT
// Rotary position embedding of one head, see scalar/rope.c.
#include "arm/neon.h"

void rope_f32_neon(float *y, const float *x, const float *cos, const float *sin, size_t half) {
  size_t i = 0;
  for (; i + 4 <= half; i += 4) {
    float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + half + i);
    float32x4_t c = vld1q_f32(cos + i), s = vld1q_f32(sin + i);
    vst1q_f32(y + i, vsubq_f32(vmulq_f32(a, c), vmulq_f32(b, s)));
    vst1q_f32(y + half + i, vaddq_f32(vmulq_f32(b, c), vmulq_f32(a, s)));
  }
  for (; i < half; i++) {
    float a = x[i], b = x[i + half];
    y[i] = a * cos[i] - b * sin[i];
    y[i + half] = b * cos[i] + a * sin[i];
  }
}
