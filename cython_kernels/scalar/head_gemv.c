// SPDX-License-Identifier: MIT
// Rows of a quantised head times int16 activations (layouts and the bound of the activations:
// head_layout.h).
//
//   int8   acc = sum_k q[k] * w8[r][k], int32;  y[r] = (float(acc) / s) * scale[r]
//   int4   part_g = sum of q[k] * (nibble[r][k] - 8) over the 32 columns of group g, int32
//          y[r] = (((float(part_0) * scale_0[r]) + float(part_1) * scale_1[r]) + ...) / s
//
// Groups are added in their order, one chain for each row: rows lie in lanes, so that 16 chains
// run side by side on every ISA, nothing is summed across lanes, and the order is the same
// everywhere. |part| <= 32 * 8 * 32768 = 2^23 is exact in float32.
//
// Sums are unsigned here because hostile int16 could overflow them: then they wrap, as the
// vector instructions do.
#include <string.h>

#include "kernels.h"
#include "scalar/half.h"

static int32_t as_signed(uint32_t x) {
  int32_t y;
  memcpy(&y, &x, sizeof y);
  return y;
}

void head_gemv_i8_scalar(float *y, const uint8_t *w, size_t n_panels, size_t k, const int16_t *q,
                         float s) {
  const size_t panel_bytes = be_head_panel_bytes(8, k);
  for (size_t p = 0; p < n_panels; p++, w += panel_bytes, y += BE_HEAD_ROWS) {
    float scale[BE_HEAD_ROWS];
    memcpy(scale, w, sizeof scale);
    const int8_t *weights = (const int8_t *)(w + BE_I8_SCALES);
    uint32_t acc[BE_HEAD_ROWS] = {0};
    for (size_t i = 0; i < k; i += BE_I8_BLOCK_K)
      for (size_t r = 0; r < BE_HEAD_ROWS; r++)
        for (size_t j = 0; j < BE_I8_BLOCK_K; j++)
          acc[r] += (uint32_t)(q[i + j] * weights[i * BE_HEAD_ROWS + r * BE_I8_BLOCK_K + j]);
    for (size_t r = 0; r < BE_HEAD_ROWS; r++)
      y[r] = ((float)as_signed(acc[r]) / s) * scale[r];
  }
}

// The part of one row in one group: 4 lines, 16 rows apart.
static int32_t group_part(const uint8_t *lines, size_t row, const int16_t *q) {
  uint32_t sum = 0;
  for (size_t line = 0; line < BE_I4_GROUP_K / BE_I4_LINE_K; line++) {
    uint32_t lane;
    memcpy(&lane, lines + line * BE_HEAD_LINE + row * sizeof lane, sizeof lane);
    for (size_t c = 0; c < BE_I4_LINE_K; c++) {
      int nibble = lane >> (16 * (c % 2) + 4 * (c / 2)) & 15;
      sum += (uint32_t)(q[line * BE_I4_LINE_K + c] * nibble);
    }
  }
  return as_signed(sum);
}

void head_gemv_i4_scalar(float *y, const uint8_t *w, size_t n_panels, size_t k, const int16_t *q,
                         const int32_t *q_sum, float s) {
  const size_t n_blocks = (k + BE_I4_BLOCK_K - 1) / BE_I4_BLOCK_K;
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS) {
    float sum[BE_HEAD_ROWS] = {0};
    for (size_t g = 0; g < 2 * n_blocks; g++) {
      const uint8_t *block = w + (p * n_blocks + g / 2) * BE_I4_BLOCK_BYTES;
      const uint8_t *lines = block + BE_HEAD_LINE + g % 2 * 4 * BE_HEAD_LINE;
      for (size_t r = 0; r < BE_HEAD_ROWS; r++) {
        uint16_t scale;
        memcpy(&scale, block + (g % 2 * BE_HEAD_ROWS + r) * sizeof scale, sizeof scale);
        uint32_t nibbles = (uint32_t)group_part(lines, r, q + g * BE_I4_GROUP_K);
        int32_t part = as_signed(nibbles - 8 * (uint32_t)q_sum[g]);
        sum[r] += (float)part * be_f16_to_f32(scale);
      }
    }
    for (size_t r = 0; r < BE_HEAD_ROWS; r++)
      y[r] = sum[r] / s;
  }
}
