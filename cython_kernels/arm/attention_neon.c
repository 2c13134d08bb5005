// SPDX-License-Identifier: MIT
// One-pass causal attention, see scalar/attention.c for the order of operations.
//
// Heads are the inner loop and blocks of keys the outer one: a block's 64 rows of keys and values
// come from memory once and stay in the first-level cache for all heads that share them. `out`
// itself holds the running weighted sum between blocks.
#include "arm/dot_neon.h"
#include "arm/online_softmax_neon.h"

enum { BLOCK_KEYS = 64 };

// s[j] = dot(q, k_j) * scale for j < n, -inf up to the next multiple of 16.
BE_INLINE void scores(float *s, const float *q, const void *k, size_t n, size_t head_dim,
                      float scale, be_float_format format) {
  size_t j = 0;
  for (; j + 2 <= n; j += 2) {
    be_dot_of_2(s + j, be_row_at(k, j, head_dim, format), head_dim, q, format);
    s[j] *= scale;
    s[j + 1] *= scale;
  }
  if (j < n) {
    s[j] = be_dot(be_row_at(k, j, head_dim, format), head_dim, q, format) * scale;
    j++;
  }
  for (; j % BE_LANES != 0; j++)
    s[j] = -INFINITY;
}

// The step of every attention, not inlined: the constants of
// exp would take registers from the loops around it.
BE_NOINLINE void softmax_step(be_softmax *state, float *s, size_t n, float *out, size_t head_dim) {
  be_softmax_step_neon(state, s, n, out, head_dim);
}

BE_INLINE float32x4_t add_weighed(float32x4_t o, const void *row, size_t d, float32x4_t p,
                                  be_float_format format) {
  return vaddq_f32(o, vmulq_f32(p, be_load4(row, d, format)));
}

// out[d] += p_j * v_j[d], j in order, for 32 consecutive d: eight chains of additions.
BE_INLINE void weigh_32(float *out, const float *p, const void *v, size_t n, size_t head_dim,
                        size_t d, be_float_format format) {
  float32x4_t o0 = vld1q_f32(out + d), o1 = vld1q_f32(out + d + 4);
  float32x4_t o2 = vld1q_f32(out + d + 8), o3 = vld1q_f32(out + d + 12);
  float32x4_t o4 = vld1q_f32(out + d + 16), o5 = vld1q_f32(out + d + 20);
  float32x4_t o6 = vld1q_f32(out + d + 24), o7 = vld1q_f32(out + d + 28);
  for (size_t j = 0; j < n; j++) {
    const void *row = be_row_at(v, j, head_dim, format);
    float32x4_t w = vld1q_dup_f32(p + j);
    o0 = add_weighed(o0, row, d, w, format);
    o1 = add_weighed(o1, row, d + 4, w, format);
    o2 = add_weighed(o2, row, d + 8, w, format);
    o3 = add_weighed(o3, row, d + 12, w, format);
    o4 = add_weighed(o4, row, d + 16, w, format);
    o5 = add_weighed(o5, row, d + 20, w, format);
    o6 = add_weighed(o6, row, d + 24, w, format);
    o7 = add_weighed(o7, row, d + 28, w, format);
  }
  vst1q_f32(out + d, o0);
  vst1q_f32(out + d + 4, o1);
  vst1q_f32(out + d + 8, o2);
  vst1q_f32(out + d + 12, o3);
  vst1q_f32(out + d + 16, o4);
  vst1q_f32(out + d + 20, o5);
  vst1q_f32(out + d + 24, o6);
  vst1q_f32(out + d + 28, o7);
}

// The same for `count` <= 16 consecutive d.
BE_INLINE void weigh_16(float *out, const float *p, const void *v, size_t n, size_t head_dim,
                        size_t d, size_t count, be_float_format format) {
  be_f32x16 o = count == 16 ? be_load16(out, d, BE_FORMAT_F32)
                            : be_load16_partial(out, d, count, BE_FORMAT_F32);
  for (size_t j = 0; j < n; j++) {
    const void *row = be_row_at(v, j, head_dim, format);
    be_f32x16 x =
        count == 16 ? be_load16(row, d, format) : be_load16_partial(row, d, count, format);
    o = be_add_products(o, be_splat16(p[j]), x);
  }
  float sum[BE_LANES];
  be_store16(sum, o);
  memcpy(out + d, sum, count * sizeof *out);
}

BE_INLINE void weigh(float *out, const float *p, const void *v, size_t n, size_t head_dim,
                     be_float_format format) {
  size_t d = 0;
  for (; d + 32 <= head_dim; d += 32)
    weigh_32(out, p, v, n, head_dim, d, format);
  for (; d + 16 <= head_dim; d += 16)
    weigh_16(out, p, v, n, head_dim, d, 16, format);
  if (d < head_dim)
    weigh_16(out, p, v, n, head_dim, d, head_dim - d, format);
}

BE_INLINE void attend(float *out, const float *q, const void *k, const void *v, size_t n_heads,
                      size_t n_keys, size_t head_dim, float scale, be_float_format format) {
  be_softmax states[BE_MAX_HEADS_PER_KV];
  for (size_t h = 0; h < n_heads; h++)
    states[h] = (be_softmax){.max = -INFINITY};
  memset(out, 0, n_heads * head_dim * sizeof *out);

  for (size_t j0 = 0; j0 < n_keys; j0 += BLOCK_KEYS) {
    size_t n = n_keys - j0 < BLOCK_KEYS ? n_keys - j0 : BLOCK_KEYS;
    for (size_t h = 0; h < n_heads; h++) {
      float s[BLOCK_KEYS], *o = out + h * head_dim;
      scores(s, q + h * head_dim, be_row_at(k, j0, head_dim, format), n, head_dim, scale, format);
      softmax_step(&states[h], s, n, o, head_dim);
      weigh(o, s, be_row_at(v, j0, head_dim, format), n, head_dim, format);
    }
  }

  for (size_t h = 0; h < n_heads; h++) {
    float inverse = 1.0f / be_tree(be_load16(states[h].sum.lane, 0, BE_FORMAT_F32));
    for (size_t d = 0; d < head_dim; d++)
      out[h * head_dim + d] *= inverse;
  }
}

void attention_f32_neon(float *out, const float *q, const float *k, const float *v, size_t n_heads,
                        size_t n_keys, size_t head_dim, float scale) {
  attend(out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F32);
}

void attention_f16_neon(float *out, const float *q, const uint16_t *k, const uint16_t *v,
                        size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  attend(out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F16);
}
