// SPDX-License-Identifier: MIT
// absmax int8 quantisation of one row, see scalar/quantize_i8.c. A ragged tail is read into 16
// lanes with zeros behind it, which round to the zeros that the padding of q must hold.
#include "arm/quantize_neon.h"

void quantize_i8_neon(int8_t *q, float *s, int32_t *q_sum, const float *x, size_t n) {
  size_t whole = n & ~(size_t)15, rest = n & 15;
  be_f32x16 tail = be_load16_partial(x, whole, rest, BE_FORMAT_F32);
  float32x4_t m = be_absmax16(vdupq_n_f32(BE_ABSMAX_MIN), tail);
  for (size_t i = 0; i < whole; i += 16)
    m = be_absmax16(m, be_load16(x, i, BE_FORMAT_F32));

  float scale = 127.0f / be_max4(m);
  const be_f32x16 factor = be_splat16(scale);
  int32x4_t sum = vdupq_n_s32(0);
  for (size_t i = 0; i < whole; i += 16)
    sum = vaddq_s32(sum, be_quantize16(q + i, be_load16(x, i, BE_FORMAT_F32), factor));
  if (rest)
    sum = vaddq_s32(sum, be_quantize16(q + whole, tail, factor));
  *s = scale;
  *q_sum = be_sum4(sum);
}
