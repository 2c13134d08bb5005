// SPDX-License-Identifier: MIT
// y[r] = sum_k w[r][k] * x[k], see scalar/dense_gemv.c and dot_neon.h.
#include "arm/dot_neon.h"

BE_INLINE void gemv(float *y, const void *w, size_t n_rows, size_t k, const float *x,
                    be_float_format format) {
  size_t r = 0;
  for (; r + 2 <= n_rows; r += 2)
    be_dot_of_2(y + r, be_row_at(w, r, k, format), k, x, format);
  if (r < n_rows)
    y[r] = be_dot(be_row_at(w, r, k, format), k, x, format);
}

void dense_gemv_f32_neon(float *y, const float *w, size_t n_rows, size_t k, const float *x) {
  gemv(y, w, n_rows, k, x, BE_FORMAT_F32);
}

void dense_gemv_f16_neon(float *y, const uint16_t *w, size_t n_rows, size_t k, const float *x) {
  gemv(y, w, n_rows, k, x, BE_FORMAT_F16);
}

void dense_gemv_bf16_neon(float *y, const uint16_t *w, size_t n_rows, size_t k, const float *x) {
  gemv(y, w, n_rows, k, x, BE_FORMAT_BF16);
}
