// SPDX-License-Identifier: MIT
// m = max(absmax(x), 1e-5); s = limit / m; q = clamp(round_half_even(x * s), -limit, limit).
//
// q is padded with zeros to a multiple of 64; q_sum[g] is the sum of q[32g .. 32g + 31], at most
// 32 * 32767 in magnitude. NaN does not count for absmax and becomes 0; an infinity gives s = 0
// and every q = 0 (then acc / s = 0 / 0 shows the NaN in the output).
#include "kernels.h"
#include "scalar/quantize.h"

static int16_t quantize(float x, float s, float limit) {
  float v = x * s;
  v = v == v ? v : 0.0f;
  v = v > -limit ? v : -limit;
  v = v < limit ? v : limit;
  return (int16_t)((v + BE_ROUND_MAGIC) - BE_ROUND_MAGIC);
}

void quantize_i16_scalar(int16_t *q, float *s, int32_t *q_sum, const float *x, size_t n,
                         int32_t limit) {
  float m = BE_ABSMAX_MIN, bound = (float)limit;
  for (size_t i = 0; i < n; i++)
    m = be_absmax(m, x[i]);
  float scale = bound / m;
  for (size_t i = 0; i < n || i % BE_WIDE_K != 0; i++) {
    q[i] = i < n ? quantize(x[i], scale, bound) : 0;
    q_sum[i / BE_I4_GROUP_K] = q[i] + (i % BE_I4_GROUP_K ? q_sum[i / BE_I4_GROUP_K] : 0);
  }
  *s = scale;
}
