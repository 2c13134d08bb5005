// SPDX-License-Identifier: MIT
// acc[t * acc_stride + 16p + r] = sum_k w[16p + r][k] * q[t][k] for m rows of q: by definition m
// products of ternary_gemv_i8, whose layout and bounds hold here.
#include "kernels.h"

void ternary_gemm_i8_scalar(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t panel_stride,
                            size_t n_panels, size_t k_blocks, const int8_t *q, size_t q_stride,
                            const int32_t *q_sum, size_t m) {
  for (size_t t = 0; t < m; t++)
    ternary_gemv_i8_scalar(acc + t * acc_stride, w, panel_stride, n_panels, k_blocks,
                           q + t * q_stride, q_sum[t]);
}
