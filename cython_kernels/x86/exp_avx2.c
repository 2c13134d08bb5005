// SPDX-License-Identifier: MIT
// y = exp(x), see scalar/exp.h.
#include "x86/avx2.h"

BE_AVX2 void exp_f32_avx2(float *y, const float *x, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, be_exp8(_mm256_loadu_ps(x + i)));
  for (; i < n; i++)
    y[i] = be_exp(x[i]);
}
