// SPDX-License-Identifier: MIT
// One-pass causal attention, see scalar/attention.c for the order of operations.
//
// Heads are the inner loop and blocks of keys the outer one: a block's 64 rows of keys and values
// come from memory once and stay in the first-level cache for all heads that share them. `out`
// itself holds the running weighted sum between blocks.
#include "x86/dot_avx2.h"

enum { BLOCK_KEYS = 64 };

typedef struct head_state {
  float max;
  float sum[BE_LANES];
} head_state;

// s[j] = dot(q, k_j) * scale for j < n, -inf up to the next multiple of 16.
BE_AVX2_INLINE void scores(float *s, const float *q, const void *k, size_t n, size_t head_dim,
                           float scale, be_float_format format) {
  size_t j = 0;
  for (; j + 4 <= n; j += 4) {
    __m128 dots = be_dot_of_4(be_row_at(k, j, head_dim, format), head_dim, q, format);
    _mm_store_ps(s + j, _mm_mul_ps(dots, _mm_set1_ps(scale)));
  }
  for (; j < n; j++)
    s[j] = be_dot(be_row_at(k, j, head_dim, format), head_dim, q, format) * scale;
  for (; j % BE_LANES != 0; j++)
    s[j] = -INFINITY;
}

// Turns scores into weights and moves the head to the new maximum.
BE_AVX2_INLINE void softmax_step(head_state *state, float *s, size_t n, float *out,
                                 size_t head_dim) {
  __m256 m = _mm256_set1_ps(state->max);
  for (size_t j = 0; j < n; j += 8)
    m = _mm256_max_ps(_mm256_load_ps(s + j), m); // second operand where the score is a NaN
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  float b = _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));

  __m256 low = _mm256_loadu_ps(state->sum), high = _mm256_loadu_ps(state->sum + 8);
  if (b > state->max) {
    float c = be_exp(state->max - b);
    low = _mm256_mul_ps(low, _mm256_set1_ps(c));
    high = _mm256_mul_ps(high, _mm256_set1_ps(c));
    for (size_t d = 0; d < head_dim; d++)
      out[d] *= c;
    state->max = b;
  }
  const __m256 max = _mm256_set1_ps(state->max);
  for (size_t j = 0; j < n; j += 16) {
    __m256 p0 = be_exp8(_mm256_sub_ps(_mm256_load_ps(s + j), max));
    __m256 p1 = be_exp8(_mm256_sub_ps(_mm256_load_ps(s + j + 8), max));
    _mm256_store_ps(s + j, p0);
    _mm256_store_ps(s + j + 8, p1);
    low = _mm256_add_ps(low, p0);
    high = _mm256_add_ps(high, p1);
  }
  _mm256_storeu_ps(state->sum, low);
  _mm256_storeu_ps(state->sum + 8, high);
}

// out[d] += p_j * v_j[d], j in order, for 64 consecutive d: eight chains of additions.
BE_AVX2_INLINE void weigh_64(float *out, const float *p, const void *v, size_t n, size_t head_dim,
                             size_t d, be_float_format format) {
  __m256 o0 = _mm256_loadu_ps(out + d), o1 = _mm256_loadu_ps(out + d + 8);
  __m256 o2 = _mm256_loadu_ps(out + d + 16), o3 = _mm256_loadu_ps(out + d + 24);
  __m256 o4 = _mm256_loadu_ps(out + d + 32), o5 = _mm256_loadu_ps(out + d + 40);
  __m256 o6 = _mm256_loadu_ps(out + d + 48), o7 = _mm256_loadu_ps(out + d + 56);
  for (size_t j = 0; j < n; j++) {
    const void *row = be_row_at(v, j, head_dim, format);
    __m256 w = _mm256_broadcast_ss(p + j);
    o0 = _mm256_add_ps(o0, _mm256_mul_ps(w, be_load8(row, d, format)));
    o1 = _mm256_add_ps(o1, _mm256_mul_ps(w, be_load8(row, d + 8, format)));
    o2 = _mm256_add_ps(o2, _mm256_mul_ps(w, be_load8(row, d + 16, format)));
    o3 = _mm256_add_ps(o3, _mm256_mul_ps(w, be_load8(row, d + 24, format)));
    o4 = _mm256_add_ps(o4, _mm256_mul_ps(w, be_load8(row, d + 32, format)));
    o5 = _mm256_add_ps(o5, _mm256_mul_ps(w, be_load8(row, d + 40, format)));
    o6 = _mm256_add_ps(o6, _mm256_mul_ps(w, be_load8(row, d + 48, format)));
    o7 = _mm256_add_ps(o7, _mm256_mul_ps(w, be_load8(row, d + 56, format)));
  }
  _mm256_storeu_ps(out + d, o0);
  _mm256_storeu_ps(out + d + 8, o1);
  _mm256_storeu_ps(out + d + 16, o2);
  _mm256_storeu_ps(out + d + 24, o3);
  _mm256_storeu_ps(out + d + 32, o4);
  _mm256_storeu_ps(out + d + 40, o5);
  _mm256_storeu_ps(out + d + 48, o6);
  _mm256_storeu_ps(out + d + 56, o7);
}

// The same for `count` <= 16 consecutive d.
BE_AVX2_INLINE void weigh_16(float *out, const float *p, const void *v, size_t n, size_t head_dim,
                             size_t d, size_t count, be_float_format format) {
  be_m256x2 o = count == 16 ? be_load16(out, d, BE_FORMAT_F32)
                            : be_load16_partial(out, d, count, BE_FORMAT_F32);
  for (size_t j = 0; j < n; j++) {
    const void *row = be_row_at(v, j, head_dim, format);
    __m256 w = _mm256_broadcast_ss(p + j);
    be_m256x2 x =
        count == 16 ? be_load16(row, d, format) : be_load16_partial(row, d, count, format);
    o = be_add_products(o, (be_m256x2){w, w}, x);
  }
  float sum[BE_LANES];
  _mm256_storeu_ps(sum, o.low);
  _mm256_storeu_ps(sum + 8, o.high);
  memcpy(out + d, sum, count * sizeof *out);
}

BE_AVX2_INLINE void weigh(float *out, const float *p, const void *v, size_t n, size_t head_dim,
                          be_float_format format) {
  size_t d = 0;
  for (; d + 64 <= head_dim; d += 64)
    weigh_64(out, p, v, n, head_dim, d, format);
  for (; d + 16 <= head_dim; d += 16)
    weigh_16(out, p, v, n, head_dim, d, 16, format);
  if (d < head_dim)
    weigh_16(out, p, v, n, head_dim, d, head_dim - d, format);
}

BE_AVX2_INLINE void attend(float *out, const float *q, const void *k, const void *v, size_t n_heads,
                           size_t n_keys, size_t head_dim, float scale, be_float_format format) {
  head_state states[BE_MAX_HEADS_PER_KV];
  for (size_t h = 0; h < n_heads; h++)
    states[h] = (head_state){.max = -INFINITY};
  memset(out, 0, n_heads * head_dim * sizeof *out);

  for (size_t j0 = 0; j0 < n_keys; j0 += BLOCK_KEYS) {
    size_t n = n_keys - j0 < BLOCK_KEYS ? n_keys - j0 : BLOCK_KEYS;
    for (size_t h = 0; h < n_heads; h++) {
      _Alignas(32) float s[BLOCK_KEYS];
      float *o = out + h * head_dim;
      scores(s, q + h * head_dim, be_row_at(k, j0, head_dim, format), n, head_dim, scale, format);
      softmax_step(&states[h], s, n, o, head_dim);
      weigh(o, s, be_row_at(v, j0, head_dim, format), n, head_dim, format);
    }
  }

  for (size_t h = 0; h < n_heads; h++) {
    float inverse = 1.0f / be_tree(be_load16(states[h].sum, 0, BE_FORMAT_F32));
    for (size_t d = 0; d < head_dim; d++)
      out[h * head_dim + d] *= inverse;
  }
}

BE_AVX2 void attention_f32_avx2(float *out, const float *q, const float *k, const float *v,
                                size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  attend(out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F32);
}

BE_AVX2 void attention_f16_avx2(float *out, const float *q, const uint16_t *k, const uint16_t *v,
                                size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  attend(out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F16);
}
