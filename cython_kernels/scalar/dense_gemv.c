// SPDX-License-Identifier: MIT
// y[r] = sum_k w[r][k] * x[k], w row-major in float32, float16 or bfloat16.
//
// Weights are widened exactly to float32; each row's sum has the lanes and the tree of lanes.h.
#include "kernels.h"
#include "scalar/lanes.h"

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

void dense_gemv_f32_scalar(float *y, const float *w, size_t n_rows, size_t k, const float *x) {
  for (size_t r = 0; r < n_rows; r++) {
    be_lanes sum = {{0}};
    be_lanes_add_products(&sum, w + r * k, x, k);
    y[r] = be_lanes_sum(&sum);
  }
}

void dense_gemv_f16_scalar(float *y, const uint16_t *w, size_t n_rows, size_t k, const float *x) {
  for (size_t r = 0; r < n_rows; r++) {
    be_lanes sum = {{0}};
    for (size_t i = 0; i < k; i += BE_LANES) {
      size_t n = min_size(BE_LANES, k - i);
      float wide[BE_LANES];
      f16_to_f32_scalar(wide, w + r * k + i, n);
      be_lanes_add_products(&sum, wide, x + i, n);
    }
    y[r] = be_lanes_sum(&sum);
  }
}

void dense_gemv_bf16_scalar(float *y, const uint16_t *w, size_t n_rows, size_t k, const float *x) {
  for (size_t r = 0; r < n_rows; r++) {
    be_lanes sum = {{0}};
    for (size_t i = 0; i < k; i += BE_LANES) {
      size_t n = min_size(BE_LANES, k - i);
      float wide[BE_LANES];
      bf16_to_f32_scalar(wide, w + r * k + i, n);
      be_lanes_add_products(&sum, wide, x + i, n);
    }
    y[r] = be_lanes_sum(&sum);
  }
}
