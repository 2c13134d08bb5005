// SPDX-License-Identifier: MIT
// Reads one row out of the interleaved panels of head_layout.h: a row's 32 bits out of each line,
// so a token touches one panel (k * 16 bytes, or k * 9) of the mapping and no more.
#include "head_row.h"

#include <string.h>

#include "head_layout.h"
#include "scalar/half.h"

static void row_i8(float *y, const uint8_t *panel, size_t r, size_t k) {
  float scale;
  memcpy(&scale, panel + r * sizeof scale, sizeof scale);
  const int8_t *w = (const int8_t *)panel + BE_I8_SCALES + r * BE_I8_BLOCK_K;
  for (size_t i = 0; i < k; i++)
    y[i] = (float)w[i / BE_I8_BLOCK_K * BE_HEAD_LINE + i % BE_I8_BLOCK_K] * scale;
}

static void row_i4(float *y, const uint8_t *panel, size_t r, size_t k) {
  for (size_t i = 0; i < k; i += BE_I4_LINE_K) {
    const uint8_t *block = panel + i / BE_I4_BLOCK_K * BE_I4_BLOCK_BYTES;
    const uint8_t *line = block + (1 + i % BE_I4_BLOCK_K / BE_I4_LINE_K) * BE_HEAD_LINE;
    size_t group = i % BE_I4_BLOCK_K / BE_I4_GROUP_K;
    uint16_t half;
    uint32_t lane;
    memcpy(&half, block + (group * BE_HEAD_ROWS + r) * sizeof half, sizeof half);
    memcpy(&lane, line + r * sizeof lane, sizeof lane);
    float scale = be_f16_to_f32(half);
    for (size_t c = 0; c < BE_I4_LINE_K && i + c < k; c++)
      y[i + c] = (float)((int)(lane >> (16 * (c % 2) + 4 * (c / 2)) & 15) - 8) * scale;
  }
}

void be_head_row(float *y, const uint8_t *head, uint32_t bits, size_t row, size_t k) {
  const uint8_t *panel = head + row / BE_HEAD_ROWS * be_head_panel_bytes(bits, k);
  if (bits == 8)
    row_i8(y, panel, row % BE_HEAD_ROWS, k);
  else
    row_i4(y, panel, row % BE_HEAD_ROWS, k);
}
