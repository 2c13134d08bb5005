// SPDX-License-Identifier: MIT
// m = max(absmax(x), 1e-5); s = 127 / m; q = clamp(round_half_even(x * s), -128, 127).
//
// q is padded with zeros to a multiple of 16, so that the ternary kernels read whole blocks; q_sum
// is their sum, exact in int32 for n < 2^24. NaN does not count for absmax and becomes 0; an
// infinity gives s = 0 and every q = 0 (then acc / s = 0 / 0 shows the NaN in the output).
#include "kernels.h"
#include "scalar/quantize.h"

void quantize_i8_scalar(int8_t *q, float *s, int32_t *q_sum, const float *x, size_t n) {
  float m = BE_ABSMAX_MIN;
  for (size_t i = 0; i < n; i++)
    m = be_absmax(m, x[i]);
  float scale = 127.0f / m;
  int32_t sum = 0;
  for (size_t i = 0; i < n; i++) {
    q[i] = be_quantize(x[i], scale);
    sum += q[i];
  }
  for (size_t i = n; i % BE_BLOCK_K != 0; i++)
    q[i] = 0;
  *s = scale;
  *q_sum = sum;
}
