// SPDX-License-Identifier: MIT
// y = a + b, see scalar/add.c.
#include "arm/neon.h"

void add_f32_neon(float *y, const float *a, const float *b, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, vaddq_f32(vld1q_f32(a + i), vld1q_f32(b + i)));
  for (; i < n; i++)
    y[i] = a[i] + b[i];
}
