// SPDX-License-Identifier: MIT
// out[h] = softmax(scale * q[h] K^T) V for the query heads h that share one key/value head, in one
// pass over the cache: the online softmax of Milakov and Gimelshein (2018), by blocks of 64 keys
// counted from key 0. The order below is the definition; every ISA follows it.
//
//   m = -inf; l = 16 lanes of 0; out = 0
//   for each block of keys j0 .. j1:
//     s_j = dot(q, k_j) * scale              dot over head_dim: lanes and tree of lanes.h
//     b   = max(m, s_j0, ..., s_j1)          a NaN is ignored
//     if b > m:  c = exp(m - b);  l *= c (each lane);  out *= c (each element);  m = b
//     p_j = exp(s_j - m)
//     l[j % 16] += p_j                       in the order of keys
//     out[d] += p_j * v_j[d]                 in the order of keys
//   out *= 1 / tree(l)
//
// A NaN score makes p, hence the output of that head, NaN. n_keys >= 1.
#include <math.h>

#include "kernels.h"
#include "scalar/online_softmax.h"

// One row of the cache as float32: the row itself, or `wide` after conversion.
typedef const float *read_row(const void *cache, size_t row, size_t head_dim, float *wide);

static const float *read_row_f32(const void *cache, size_t row, size_t head_dim, float *wide) {
  (void)wide;
  return (const float *)cache + row * head_dim;
}

static const float *read_row_f16(const void *cache, size_t row, size_t head_dim, float *wide) {
  f16_to_f32_scalar(wide, (const uint16_t *)cache + row * head_dim, head_dim);
  return wide;
}

static void attend_head(float *out, const float *q, const void *k, const void *v, read_row *row,
                        size_t n_keys, size_t head_dim, float scale) {
  be_softmax state = {.max = -INFINITY};
  float wide[BE_MAX_HEAD_DIM];
  for (size_t d = 0; d < head_dim; d++)
    out[d] = 0.0f;
  for (size_t j0 = 0; j0 < n_keys; j0 += BE_BLOCK_KEYS) {
    size_t n = n_keys - j0 < BE_BLOCK_KEYS ? n_keys - j0 : BE_BLOCK_KEYS;
    float s[BE_BLOCK_KEYS];
    for (size_t j = 0; j < n; j++) {
      be_lanes dot = {{0}};
      be_lanes_add_products(&dot, q, row(k, j0 + j, head_dim, wide), head_dim);
      s[j] = be_lanes_sum(&dot) * scale;
    }
    be_softmax_step(&state, s, n, out, head_dim);
    for (size_t j = 0; j < n; j++) {
      const float *value = row(v, j0 + j, head_dim, wide);
      for (size_t d = 0; d < head_dim; d++)
        out[d] += s[j] * value[d];
    }
  }
  float inverse = 1.0f / be_lanes_sum(&state.sum);
  for (size_t d = 0; d < head_dim; d++)
    out[d] *= inverse;
}

void attention_f32_scalar(float *out, const float *q, const float *k, const float *v,
                          size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  for (size_t h = 0; h < n_heads; h++)
    attend_head(out + h * head_dim, q + h * head_dim, k, v, read_row_f32, n_keys, head_dim, scale);
}

void attention_f16_scalar(float *out, const float *q, const uint16_t *k, const uint16_t *v,
                          size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  for (size_t h = 0; h < n_heads; h++)
    attend_head(out + h * head_dim, q + h * head_dim, k, v, read_row_f16, n_keys, head_dim, scale);
}
