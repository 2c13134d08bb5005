// SPDX-License-Identifier: MIT
// acc[16p + r] = sum_k w[16p + r][k] * q[k], w in {-1, 0, +1} stored as codes w + 1 in P16.
//
// A P16 block holds 16 rows x 16 columns in 64 bytes. Byte 4r + c holds four columns of row r in
// its four bit pairs ("fields"), lowest first:
//
//   byte    0    1    2    3  |  4    5    6    7  | ...  row r's 4 bytes are one 32-bit lane
//   row     0    0    0    0  |  1    1    1    1  |
//   column  c=0  c=1  c=2  c=3|  c=0  ...                field f of byte c is column 4f + c
//
// Codes are one too large: sum (w + 1) q - sum q.
//
// k_blocks <= 2^18: |sum code * q| <= 3 * 128 * 16 * 2^18 < 2^31 even for the hostile code 3,
// which counts as weight +2 here and may give anything on other ISAs.
#include "kernels.h"

static int32_t row_dot(const uint8_t *row, size_t k_blocks, const int8_t *q) {
  int32_t sum = 0;
  for (size_t b = 0; b < k_blocks; b++)
    for (size_t f = 0; f < 4; f++)
      for (size_t c = 0; c < 4; c++) {
        int32_t code = row[b * BE_BLOCK_BYTES + c] >> 2 * f & 3;
        sum += code * q[b * BE_BLOCK_K + 4 * f + c];
      }
  return sum;
}

void ternary_gemv_i8_scalar(int32_t *acc, const uint8_t *w, size_t panel_stride, size_t n_panels,
                            size_t k_blocks, const int8_t *q, int32_t q_sum) {
  for (size_t p = 0; p < n_panels; p++)
    for (size_t r = 0; r < BE_PANEL_ROWS; r++)
      acc[p * BE_PANEL_ROWS + r] = // modulo 2^32: a hostile program's q_sum is any number
          (int32_t)((uint32_t)row_dot(w + p * panel_stride + 4 * r, k_blocks, q) - (uint32_t)q_sum);
}
