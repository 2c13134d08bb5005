// SPDX-License-Identifier: MIT
// Gated activations, see scalar/gated_activation.c.
#include "arm/neon.h"

void relu2_mul_f32_neon(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    float32x4_t g = vmaxq_f32(vld1q_f32(gate + i), vdupq_n_f32(0.0f)); // NaN passes through
    vst1q_f32(y + i, vmulq_f32(vmulq_f32(g, g), vld1q_f32(up + i)));
  }
  for (; i < n; i++) {
    float g = 0.0f > gate[i] ? 0.0f : gate[i];
    y[i] = (g * g) * up[i];
  }
}

void silu_mul_f32_neon(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    float32x4_t g = vld1q_f32(gate + i);
    float32x4_t silu = be_divide4(g, vaddq_f32(vdupq_n_f32(1.0f), be_exp4(vnegq_f32(g))));
    vst1q_f32(y + i, vmulq_f32(silu, vld1q_f32(up + i)));
  }
  for (; i < n; i++)
    y[i] = (gate[i] / (1.0f + be_exp(-gate[i]))) * up[i];
}
