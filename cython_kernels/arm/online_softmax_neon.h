// SPDX-License-Identifier: MIT
// The online softmax step between the blocks of every attention, see scalar/online_softmax.h.
#ifndef BITNET_EDGE_ARM_ONLINE_SOFTMAX_NEON_H
#define BITNET_EDGE_ARM_ONLINE_SOFTMAX_NEON_H

#include "arm/neon.h"
#include "scalar/online_softmax.h"

// be_softmax_step over s[0..n), which is -inf up to the next multiple of 16.
BE_INLINE void be_softmax_step_neon(be_softmax *state, float *s, size_t n, float *out,
                                    size_t head_dim) {
  float32x4_t m = vdupq_n_f32(state->max);
  for (size_t j = 0; j < n; j += 4)
    m = be_greater4(vld1q_f32(s + j), m);
  float b = be_max4(m);

  be_f32x16 sum = be_load16(state->sum.lane, 0, BE_FORMAT_F32);
  if (b > state->max) {
    float c = be_exp(state->max - b);
    sum = be_multiply16(sum, be_splat16(c));
    size_t d = 0;
    for (; d + 4 <= head_dim; d += 4)
      vst1q_f32(out + d, vmulq_n_f32(vld1q_f32(out + d), c));
    for (; d < head_dim; d++)
      out[d] *= c;
    state->max = b;
  }
  const float32x4_t max = vdupq_n_f32(state->max);
  for (size_t j = 0; j < n; j += 16) {
    be_f32x16 p = be_load16(s, j, BE_FORMAT_F32);
    p = be_exp16((be_f32x16){vsubq_f32(p.v0, max), vsubq_f32(p.v1, max), vsubq_f32(p.v2, max),
                             vsubq_f32(p.v3, max)});
    be_store16(s + j, p);
    sum = be_add16(sum, p);
  }
  be_store16(state->sum.lane, sum);
}

#endif
