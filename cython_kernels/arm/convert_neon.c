// SPDX-License-Identifier: MIT
// Conversions between float32 and the 16-bit floats, see scalar/half.h. FCVTN agrees with it for
// every input but one: it keeps sign and payload of a NaN on the way down.
#include "arm/neon.h"

void bf16_to_f32_neon(float *y, const uint16_t *x, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, be_load4(x, i, BE_FORMAT_BF16));
  for (; i < n; i++)
    y[i] = be_bf16_to_f32(x[i]);
}

void f16_to_f32_neon(float *y, const uint16_t *x, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, be_load4(x, i, BE_FORMAT_F16));
  for (; i < n; i++)
    y[i] = be_f16_to_f32(x[i]);
}

void f32_to_f16_neon(uint16_t *y, const float *x, size_t n) {
  size_t i = 0;
#if BE_ARCH_ARM64
  for (; i + 4 <= n; i += 4) {
    float32x4_t v = vld1q_f32(x + i);
    uint16x4_t number = vmovn_u32(vceqq_f32(v, v));
    uint16x4_t half = vreinterpret_u16_f16(vcvt_f16_f32(v));
    vst1_u16(y + i, vbsl_u16(number, half, vdup_n_u16(0x7e00)));
  }
#endif
  for (; i < n; i++) // all of it on 32-bit ARM, where the conversion is an optional extension
    y[i] = be_f32_to_f16(x[i]);
}
