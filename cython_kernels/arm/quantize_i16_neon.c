// SPDX-License-Identifier: MIT
// absmax int16 quantisation of one row, see scalar/quantize_i16.c. A ragged tail is read into 16
// lanes with zeros behind it, which round to the zeros that the padding of q must hold.
#include "arm/quantize_neon.h"

// quantize of scalar/quantize_i16.c; the integer is read from the bits that the magic leaves.
BE_INLINE int32x4_t round4(float32x4_t v, float32x4_t limit) {
  uint32x4_t number = vceqq_f32(v, v); // NaN becomes 0
  v = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), number));
  v = vminq_f32(vmaxq_f32(v, vnegq_f32(limit)), limit);
  const float32x4_t magic = vdupq_n_f32(BE_ROUND_MAGIC);
  return vsubq_s32(vreinterpretq_s32_f32(vaddq_f32(v, magic)), vreinterpretq_s32_f32(magic));
}

// Stores 16 int16 and returns their sum in four int32 parts.
BE_INLINE int32x4_t round16(int16_t *q, be_f32x16 x, be_f32x16 scale, float32x4_t limit) {
  x = be_multiply16(x, scale);
  int32x4_t i0 = round4(x.v0, limit), i1 = round4(x.v1, limit);
  int32x4_t i2 = round4(x.v2, limit), i3 = round4(x.v3, limit);
  vst1q_s16(q, vcombine_s16(vmovn_s32(i0), vmovn_s32(i1)));
  vst1q_s16(q + 8, vcombine_s16(vmovn_s32(i2), vmovn_s32(i3)));
  return vaddq_s32(vaddq_s32(i0, i1), vaddq_s32(i2, i3));
}

// Elements i .. i + 15, zeros beyond n.
BE_INLINE be_f32x16 load(const float *x, size_t i, size_t n) {
  if (i + BE_LANES <= n)
    return be_load16(x, i, BE_FORMAT_F32);
  return be_load16_partial(x, i < n ? i : n, i < n ? n - i : 0, BE_FORMAT_F32);
}

void quantize_i16_neon(int16_t *q, float *s, int32_t *q_sum, const float *x, size_t n,
                       int32_t limit) {
  float32x4_t m = vdupq_n_f32(BE_ABSMAX_MIN);
  for (size_t i = 0; i < n; i += BE_LANES)
    m = be_absmax16(m, load(x, i, n));
  const float bound = (float)limit, factor = bound / be_max4(m);
  const be_f32x16 scale = be_splat16(factor);
  const float32x4_t limits = vdupq_n_f32(bound);
  for (size_t i = 0; i < n || i % BE_WIDE_K != 0; i += BE_I4_GROUP_K) {
    int32x4_t sum = round16(q + i, load(x, i, n), scale, limits);
    sum = vaddq_s32(sum, round16(q + i + 16, load(x, i + 16, n), scale, limits));
    q_sum[i / BE_I4_GROUP_K] = be_sum4(sum);
  }
  *s = factor;
}
