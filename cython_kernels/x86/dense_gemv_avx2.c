// SPDX-License-Identifier: MIT
// y[r] = sum_k w[r][k] * x[k], see scalar/dense_gemv.c and dot_avx2.h.
#include "x86/dot_avx2.h"

BE_AVX2_INLINE void gemv(float *y, const void *w, size_t n_rows, size_t k, const float *x,
                         be_float_format format) {
  size_t r = 0;
  for (; r + 4 <= n_rows; r += 4)
    _mm_storeu_ps(y + r, be_dot_of_4(be_row_at(w, r, k, format), k, x, format));
  for (; r < n_rows; r++)
    y[r] = be_dot(be_row_at(w, r, k, format), k, x, format);
}

BE_AVX2 void dense_gemv_f32_avx2(float *y, const float *w, size_t n_rows, size_t k,
                                 const float *x) {
  gemv(y, w, n_rows, k, x, BE_FORMAT_F32);
}

BE_AVX2 void dense_gemv_f16_avx2(float *y, const uint16_t *w, size_t n_rows, size_t k,
                                 const float *x) {
  gemv(y, w, n_rows, k, x, BE_FORMAT_F16);
}

BE_AVX2 void dense_gemv_bf16_avx2(float *y, const uint16_t *w, size_t n_rows, size_t k,
                                  const float *x) {
  gemv(y, w, n_rows, k, x, BE_FORMAT_BF16);
}
