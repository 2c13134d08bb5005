// SPDX-License-Identifier: MIT
// y = a + b, see scalar/add.c.
#include "x86/avx2.h"

BE_AVX2 void add_f32_avx2(float *y, const float *a, const float *b, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
  for (; i < n; i++)
    y[i] = a[i] + b[i];
}
