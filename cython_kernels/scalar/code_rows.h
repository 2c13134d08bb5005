// SPDX-License-Identifier: MIT
// What the vector kernels of attention over codes share: rows of codes, and the walk over blocks of
// keys and tiles of heads. scalar/attention_quantized.c has the formulas.
#ifndef BITNET_EDGE_SCALAR_CODE_ROWS_H
#define BITNET_EDGE_SCALAR_CODE_ROWS_H

#include <math.h>
#include <string.h>

#include "kernels.h"
#include "scalar/online_softmax.h"

// Heads that share the conversion of a row of codes to floats.
enum { BE_HEAD_TILE = 4 };

// How codes are stored; always a compile-time constant, so that its tests vanish.
typedef enum be_code_format { BE_CODES_I8, BE_CODES_I4 } be_code_format;

// Consecutive rows of keys or values: row j at codes + j * row_bytes, scale i of it at
// scales[j * row_scales + i], float (int8) or bfloat16 (int4).
typedef struct be_code_rows {
  const uint8_t *codes;
  const void *scales;
  size_t row_bytes, row_scales;
} be_code_rows;

static inline be_code_rows be_rows_of(const void *codes, const void *scales, size_t head_dim,
                                      be_code_format format) {
  if (format == BE_CODES_I8)
    return (be_code_rows){codes, scales, (head_dim + 15) / 16 * 16, 1};
  size_t groups = (head_dim + BE_KV_GROUP - 1) / BE_KV_GROUP;
  return (be_code_rows){codes, scales, groups * (BE_KV_GROUP / 2), groups};
}

// The rows from row j on.
static inline be_code_rows be_rows_from(be_code_rows rows, size_t j, be_code_format format) {
  size_t scale_bytes = format == BE_CODES_I8 ? sizeof(float) : sizeof(uint16_t);
  rows.codes += j * rows.row_bytes;
  rows.scales = (const uint8_t *)rows.scales + j * rows.row_scales * scale_bytes;
  return rows;
}

// Dot products to scores, -inf up to the next multiple of 16.
static inline void be_finish_scores(float *s, be_code_rows k, size_t n, float scale,
                                    be_code_format format) {
  const float *k_scale = k.scales;
  for (size_t j = 0; j < n; j++)
    s[j] = (format == BE_CODES_I8 ? s[j] * k_scale[j] : s[j]) * scale;
  for (size_t j = n; j % BE_LANES != 0; j++)
    s[j] = -INFINITY;
}

// Softmax weights to factors of the rows of values.
static inline void be_scale_weights(float *p, be_code_rows v, size_t n, be_code_format format) {
  const float *v_scale = v.scales;
  for (size_t j = 0; format == BE_CODES_I8 && j < n; j++)
    p[j] *= v_scale[j];
}

// One block of n <= 64 keys for `heads` heads, 1 or BE_HEAD_TILE; q and out have `stride` elements
// a head, a multiple of 16.
typedef void be_attend_block(be_softmax *states, float *out, const float *q, size_t heads,
                             size_t stride, be_code_rows k, be_code_rows v, size_t n, float scale);

// Where head_dim is no multiple of 16, q and out take a detour through padded copies; rows of codes
// are padded already.
static inline void be_attend_padded(be_attend_block *block, be_softmax *states, float *out,
                                    const float *q, size_t heads, size_t head_dim, be_code_rows k,
                                    be_code_rows v, size_t n, float scale) {
  float padded_q[BE_HEAD_TILE * BE_MAX_HEAD_DIM] = {0};
  float padded_out[BE_HEAD_TILE * BE_MAX_HEAD_DIM] = {0};
  size_t stride = (head_dim + 15) / 16 * 16;
  for (size_t h = 0; h < heads; h++) {
    memcpy(padded_q + h * stride, q + h * head_dim, head_dim * sizeof *q);
    memcpy(padded_out + h * stride, out + h * head_dim, head_dim * sizeof *out);
  }
  block(states, padded_out, padded_q, heads, stride, k, v, n, scale);
  for (size_t h = 0; h < heads; h++)
    memcpy(out + h * head_dim, padded_out + h * stride, head_dim * sizeof *out);
}

// Blocks of keys are the outer loop: a block comes from memory once for all heads.
static inline void be_attend_quantized(be_attend_block *block, be_code_format format, float *out,
                                       const float *q, be_code_rows k, be_code_rows v,
                                       size_t n_heads, size_t n_keys, size_t head_dim,
                                       float scale) {
  be_softmax states[BE_MAX_HEADS_PER_KV];
  for (size_t h = 0; h < n_heads; h++)
    states[h] = (be_softmax){.max = -INFINITY};
  memset(out, 0, n_heads * head_dim * sizeof *out);

  for (size_t j0 = 0; j0 < n_keys; j0 += BE_BLOCK_KEYS) {
    size_t n = n_keys - j0 < BE_BLOCK_KEYS ? n_keys - j0 : BE_BLOCK_KEYS;
    be_code_rows keys = be_rows_from(k, j0, format), values = be_rows_from(v, j0, format);
    for (size_t h = 0, heads; h < n_heads; h += heads) {
      heads = n_heads - h < BE_HEAD_TILE ? 1 : BE_HEAD_TILE;
      float *o = out + h * head_dim;
      const float *query = q + h * head_dim;
      if (head_dim % 16 == 0)
        block(&states[h], o, query, heads, head_dim, keys, values, n, scale);
      else
        be_attend_padded(block, &states[h], o, query, heads, head_dim, keys, values, n, scale);
    }
  }

  for (size_t h = 0; h < n_heads; h++) {
    float inverse = 1.0f / be_lanes_sum(&states[h].sum);
    for (size_t d = 0; d < head_dim; d++)
      out[h * head_dim + d] *= inverse;
  }
}

#endif
