// SPDX-License-Identifier: MIT
// Attention over a cache of codes: scalar/attention.c, reading int8 or int4 rows directly.
//
// int8, one float32 scale a row, which is applied once to the row's product with the query and once
// to its weight (so a row costs two multiplications, not head_dim):
//     s_j    = (dot(q, code_j) * k_scale[j]) * scale
//     out[d] += (p_j * v_scale[j]) * code_j[d]
// int4, one bfloat16 scale a group of 32: an element is code * scale, exactly a float32, and then
//     s_j    = dot(q, k_j) * scale;  out[d] += p_j * v_j[d]
// dot, p_j, their order and the sum of the p_j (before v_scale) are those of scalar/attention.c.
//
// Rows of int8 codes are padded with zeros to 16, rows of int4 codes with code 0 to whole groups,
// and the codes under an infinite scale are 0 (as quantize_kv_i4 writes them).
#include <math.h>

#include "kernels.h"
#include "scalar/half.h"
#include "scalar/online_softmax.h"

// Keys or values of one head; `scales` are float (int8) or bfloat16 (int4).
typedef struct rows {
  const void *codes, *scales;
} rows;

// Row j as floats in `wide`, and what is left to multiply them by.
typedef float read_row(rows cache, size_t j, size_t head_dim, float *wide);

static float read_row_i8(rows cache, size_t j, size_t head_dim, float *wide) {
  size_t row_bytes = (head_dim + BE_BLOCK_K - 1) / BE_BLOCK_K * BE_BLOCK_K;
  const int8_t *codes = (const int8_t *)cache.codes + j * row_bytes;
  for (size_t d = 0; d < head_dim; d++)
    wide[d] = codes[d];
  return ((const float *)cache.scales)[j];
}

static float read_row_i4(rows cache, size_t j, size_t head_dim, float *wide) {
  enum { HALF = BE_KV_GROUP / 2 };
  size_t groups = (head_dim + BE_KV_GROUP - 1) / BE_KV_GROUP;
  const uint8_t *codes = (const uint8_t *)cache.codes + j * groups * HALF;
  const uint16_t *scales = (const uint16_t *)cache.scales + j * groups;
  for (size_t d = 0; d < head_dim; d++) {
    size_t group = d / BE_KV_GROUP, i = d % BE_KV_GROUP;
    int code = codes[group * HALF + i % HALF] >> (i < HALF ? 0 : 4) & 15;
    wide[d] = (float)(code - 8) * be_bf16_to_f32(scales[group]);
  }
  return 1.0f;
}

static void attend_head(float *out, const float *q, rows k, rows v, read_row *row, size_t n_keys,
                        size_t head_dim, float scale) {
  be_softmax state = {.max = -INFINITY};
  float wide[BE_MAX_HEAD_DIM];
  for (size_t d = 0; d < head_dim; d++)
    out[d] = 0.0f;
  for (size_t j0 = 0; j0 < n_keys; j0 += BE_BLOCK_KEYS) {
    size_t n = n_keys - j0 < BE_BLOCK_KEYS ? n_keys - j0 : BE_BLOCK_KEYS;
    float s[BE_BLOCK_KEYS];
    for (size_t j = 0; j < n; j++) {
      be_lanes dot = {{0}};
      float row_scale = row(k, j0 + j, head_dim, wide);
      be_lanes_add_products(&dot, q, wide, head_dim);
      s[j] = (be_lanes_sum(&dot) * row_scale) * scale;
    }
    be_softmax_step(&state, s, n, out, head_dim);
    for (size_t j = 0; j < n; j++) {
      float weight = s[j] * row(v, j0 + j, head_dim, wide);
      for (size_t d = 0; d < head_dim; d++)
        out[d] += weight * wide[d];
    }
  }
  float inverse = 1.0f / be_lanes_sum(&state.sum);
  for (size_t d = 0; d < head_dim; d++)
    out[d] *= inverse;
}

void attention_i8_scalar(float *out, const float *q, const int8_t *k, const float *k_scale,
                         const int8_t *v, const float *v_scale, size_t n_heads, size_t n_keys,
                         size_t head_dim, float scale) {
  for (size_t h = 0; h < n_heads; h++)
    attend_head(out + h * head_dim, q + h * head_dim, (rows){k, k_scale}, (rows){v, v_scale},
                read_row_i8, n_keys, head_dim, scale);
}

void attention_i4_scalar(float *out, const float *q, const uint8_t *k, const uint16_t *k_scale,
                         const uint8_t *v, const uint16_t *v_scale, size_t n_heads, size_t n_keys,
                         size_t head_dim, float scale) {
  for (size_t h = 0; h < n_heads; h++)
    attend_head(out + h * head_dim, q + h * head_dim, (rows){k, k_scale}, (rows){v, v_scale},
                read_row_i4, n_keys, head_dim, scale);
}
