// SPDX-License-Identifier: MIT
// out = softmax(scale * q K^T) V for each token and query head, in one pass over what the token
// sees of the cache: the online softmax of Milakov and Gimelshein (2018), by blocks of 64
// positions (attention.h). The order below is the definition; every ISA follows it.
//
//   m = -inf; l = 16 lanes of 0; out = 0
//   for each block of keys j, counted from the block's first position:
//     s_j = (dot(q, k_j) * k_scale[j]) * scale     dot over head_dim: lanes and tree of lanes.h
//     b   = max(m, all s_j)                        a NaN is ignored
//     if b > m:  c = exp(m - b);  l *= c (each lane);  out *= c (each element);  m = b
//     p_j = exp(s_j - m)
//     l[j % 16] += p_j                             in the order of keys
//     out[d] += (p_j * v_scale[j]) * v_j[d]        in the order of keys
//   out *= 1 / tree(l)
//
// int8 rows have one float32 scale each, which is applied once to the row's product and once to its
// weight: a row costs two multiplications, not head_dim. Elsewhere k_scale = v_scale = 1; an
// element of int4 is code * scale of its group, exactly a float32.
//
// Rows of int8 codes are padded with zeros to 16, rows of int4 codes with code 0 to whole groups,
// and the codes under an infinite scale are 0 (as quantize_kv_i4 writes them).
//
// A NaN score makes p, hence the output of that head, NaN. A token sees at least one key.
#include <math.h>

#include "kernels.h"
#include "scalar/half.h"
#include "scalar/kv_rows.h"
#include "scalar/online_softmax.h"

// Row j as floats in `wide`; returns what is left to multiply them by.
static float read_row(be_kv_rows rows, size_t j, size_t head_dim, be_kv_format format,
                      float *wide) {
  const uint8_t *row = rows.data + j * rows.row_bytes, *scales = rows.scales;
  enum { HALF = BE_KV_GROUP / 2 };
  switch (format) {
  case BE_KV_F32:
    for (size_t d = 0; d < head_dim; d++)
      wide[d] = ((const float *)(const void *)row)[d];
    return 1.0f;
  case BE_KV_F16:
    f16_to_f32_scalar(wide, (const uint16_t *)(const void *)row, head_dim);
    return 1.0f;
  case BE_KV_I8:
    for (size_t d = 0; d < head_dim; d++)
      wide[d] = (int8_t)row[d];
    return ((const float *)(const void *)scales)[j];
  case BE_KV_I4:
    for (size_t d = 0; d < head_dim; d++) {
      size_t group = d / BE_KV_GROUP, i = d % BE_KV_GROUP;
      int code = row[group * HALF + i % HALF] >> (i < HALF ? 0 : 4) & 15;
      const uint16_t *row_scales = (const uint16_t *)(const void *)(scales + j * rows.scale_bytes);
      wide[d] = (float)(code - 8) * be_bf16_to_f32(row_scales[group]);
    }
  }
  return 1.0f;
}

static void attend_block(be_softmax *state, float *out, const float *q, be_kv_rows k, be_kv_rows v,
                         be_keys keys, size_t head_dim, float scale, be_kv_format format) {
  float s[BE_BLOCK_KEYS], wide[BE_MAX_HEAD_DIM];
  for (size_t j = keys.low; j < keys.high; j++) {
    be_lanes dot = {{0}};
    float row_scale = read_row(k, j - keys.low, head_dim, format, wide);
    be_lanes_add_products(&dot, q, wide, head_dim);
    s[j] = (be_lanes_sum(&dot) * row_scale) * scale;
  }
  be_softmax_step(state, s, keys, out, head_dim);
  for (size_t j = keys.low; j < keys.high; j++) {
    float weight = s[j] * read_row(v, j - keys.low, head_dim, format, wide);
    for (size_t d = 0; d < head_dim; d++)
      out[d] += weight * wide[d];
  }
}

// One head of one token; `at` is where both begin in q and out.
static void attend_head(const be_attention *a, size_t position, size_t at, be_kv_format format) {
  be_softmax state = {.max = -INFINITY};
  float *out = a->out + at;
  for (size_t d = 0; d < a->head_dim; d++)
    out[d] = 0.0f;
  for (const be_kv_segment *s = a->segments; s < a->segments + a->n_segments; s++) {
    const be_kv_rows k = be_kv_rows_of(s->k, s->k_scales, a->head_dim, format);
    const be_kv_rows v = be_kv_rows_of(s->v, s->v_scales, a->head_dim, format);
    for (size_t b = s->first / BE_BLOCK_KEYS * BE_BLOCK_KEYS; b < s->end; b += BE_BLOCK_KEYS) {
      be_keys keys = be_keys_seen(s, position, b);
      if (keys.low == keys.high)
        continue;
      size_t row = b + keys.low - s->first;
      attend_block(&state, out, s->q + at, be_kv_rows_from(k, row), be_kv_rows_from(v, row), keys,
                   a->head_dim, a->scale, format);
    }
  }
  float inverse = 1.0f / be_lanes_sum(&state.sum);
  for (size_t d = 0; d < a->head_dim; d++)
    out[d] *= inverse;
}

static void attend(const be_attention *a, be_kv_format format) {
  for (size_t t = 0; t < a->n_tokens; t++)
    for (size_t h = 0; h < a->n_heads; h++)
      attend_head(a, a->position + t, t * a->stride + h * a->head_dim, format);
}

void attention_f32_scalar(const be_attention *a) { attend(a, BE_KV_F32); }
void attention_f16_scalar(const be_attention *a) { attend(a, BE_KV_F16); }
void attention_i8_scalar(const be_attention *a) { attend(a, BE_KV_I8); }
void attention_i4_scalar(const be_attention *a) { attend(a, BE_KV_I4); }
