// SPDX-License-Identifier: MIT
// RMS norm, alone and fused with quantisation, see scalar/rms_norm.c.
#include "arm/quantize_neon.h"

BE_INLINE float reciprocal_rms(const float *x, size_t n, float eps) {
  be_f32x16 sum = be_splat16(0);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    be_f32x16 v = be_load16(x, i, BE_FORMAT_F32);
    sum = be_add_products(sum, v, v);
  }
  if (i < n) {
    be_f32x16 v = be_load16_partial(x, i, n - i, BE_FORMAT_F32);
    sum = be_add_products(sum, v, v);
  }
  return 1.0f / sqrtf(be_tree(sum) / (float)n + eps);
}

void rms_norm_f32_neon(float *y, const float *x, const float *gain, size_t n, float eps) {
  float r = reciprocal_rms(x, n, eps);
  const float32x4_t factor = vdupq_n_f32(r);
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, vmulq_f32(vmulq_f32(vld1q_f32(x + i), factor), vld1q_f32(gain + i)));
  for (; i < n; i++)
    y[i] = (x[i] * r) * gain[i];
}

BE_INLINE be_f32x16 normalize16(be_f32x16 x, be_f32x16 gain, be_f32x16 r) {
  return be_multiply16(be_multiply16(x, r), gain);
}

void rms_norm_quantize_i8_neon(int8_t *q, float *s, int32_t *q_sum, const float *x,
                               const float *gain, size_t n, float eps) {
  size_t whole = n & ~(size_t)15, rest = n & 15;
  const be_f32x16 r = be_splat16(reciprocal_rms(x, n, eps));
  be_f32x16 tail = normalize16(be_load16_partial(x, whole, rest, BE_FORMAT_F32),
                               be_load16_partial(gain, whole, rest, BE_FORMAT_F32), r);
  float32x4_t m = be_absmax16(vdupq_n_f32(BE_ABSMAX_MIN), tail);
  for (size_t i = 0; i < whole; i += 16)
    m = be_absmax16(
        m, normalize16(be_load16(x, i, BE_FORMAT_F32), be_load16(gain, i, BE_FORMAT_F32), r));

  float scale = 127.0f / be_max4(m);
  const be_f32x16 factor = be_splat16(scale);
  int32x4_t sum = vdupq_n_s32(0);
  for (size_t i = 0; i < whole; i += 16) {
    be_f32x16 v = normalize16(be_load16(x, i, BE_FORMAT_F32), be_load16(gain, i, BE_FORMAT_F32), r);
    sum = vaddq_s32(sum, be_quantize16(q + i, v, factor));
  }
  if (rest)
    sum = vaddq_s32(sum, be_quantize16(q + whole, tail, factor));
  *s = scale;
  *q_sum = be_sum4(sum);
}
