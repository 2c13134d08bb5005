// SPDX-License-Identifier: MIT
// One-pass attention over int8 and int4 codes, see scalar/attention_quantized.c for the formulas.
//
// Turning codes into floats costs as much as using them once, so four heads share it: a tile is
// four sums of 16 lanes, of four heads for one row. Heads that are left over take four rows (keys)
// or 64 elements (values) at a time instead. Either way eight chains of additions hide their
// latency.
// A block's values are prefetched while its keys are read.
#include "x86/codes_avx2.h"
#include "x86/online_softmax_avx2.h"

enum { KEY_TILE = 4, PREFETCH_ROWS = 16 };

typedef struct tile {
  be_m256x2 t0, t1, t2, t3;
} tile;

BE_AVX2_INLINE be_m256x2 zero16(void) {
  return (be_m256x2){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

BE_AVX2_INLINE be_m256x2 splat16(const float *x) {
  __m256 v = _mm256_broadcast_ss(x);
  return (be_m256x2){v, v};
}

BE_AVX2_INLINE be_m256x2 load16(const float *x) { return be_load16(x, 0, BE_FORMAT_F32); }

BE_AVX2_INLINE void store16(float *x, be_m256x2 v) {
  _mm256_storeu_ps(x, v.low);
  _mm256_storeu_ps(x + 8, v.high);
}

BE_AVX2_INLINE void prefetch_row(be_code_rows rows, size_t j) {
  const char *row = (const char *)rows.codes + j * rows.row_bytes;
  for (size_t i = 0; i < rows.row_bytes; i += 64)
    _mm_prefetch(row + i, _MM_HINT_T0);
}

// s[64 * h + j] = dot(q_h, k_j) for four heads.
BE_AVX2_INLINE void dots_of_4_heads(float *s, const float *q, size_t stride, be_code_rows k,
                                    be_code_rows v, size_t n, be_code_format format) {
  for (size_t j = 0; j < n; j++) {
    tile sum = {zero16(), zero16(), zero16(), zero16()};
    prefetch_row(k, j + PREFETCH_ROWS);
    prefetch_row(v, j);
    for (size_t d = 0; d < stride; d += 16) {
      be_m256x2 x = be_load_codes(k, j, d, format);
      sum.t0 = be_add_products(sum.t0, load16(q + d), x);
      sum.t1 = be_add_products(sum.t1, load16(q + stride + d), x);
      sum.t2 = be_add_products(sum.t2, load16(q + 2 * stride + d), x);
      sum.t3 = be_add_products(sum.t3, load16(q + 3 * stride + d), x);
    }
    __m128 dots = be_tree_of_4(sum.t0, sum.t1, sum.t2, sum.t3);
    s[j] = _mm_cvtss_f32(dots);
    s[BE_BLOCK_KEYS + j] = _mm_cvtss_f32(_mm_movehdup_ps(dots));
    s[2 * BE_BLOCK_KEYS + j] = _mm_cvtss_f32(_mm_movehl_ps(dots, dots));
    s[3 * BE_BLOCK_KEYS + j] = _mm_cvtss_f32(_mm_shuffle_ps(dots, dots, 0xff));
  }
}

// s[j] = dot(q, k_j) for one head.
BE_AVX2_INLINE void dots(float *s, const float *q, size_t stride, be_code_rows k, be_code_rows v,
                         size_t n, be_code_format format) {
  size_t j = 0;
  for (; j + KEY_TILE <= n; j += KEY_TILE) {
    tile sum = {zero16(), zero16(), zero16(), zero16()};
    for (size_t i = 0; i < KEY_TILE; i++) {
      prefetch_row(k, j + i + PREFETCH_ROWS);
      prefetch_row(v, j + i);
    }
    for (size_t d = 0; d < stride; d += 16) {
      be_m256x2 x = load16(q + d);
      sum.t0 = be_add_products(sum.t0, be_load_codes(k, j, d, format), x);
      sum.t1 = be_add_products(sum.t1, be_load_codes(k, j + 1, d, format), x);
      sum.t2 = be_add_products(sum.t2, be_load_codes(k, j + 2, d, format), x);
      sum.t3 = be_add_products(sum.t3, be_load_codes(k, j + 3, d, format), x);
    }
    _mm_store_ps(s + j, be_tree_of_4(sum.t0, sum.t1, sum.t2, sum.t3));
  }
  for (; j < n; j++) {
    be_m256x2 sum = zero16();
    for (size_t d = 0; d < stride; d += 16)
      sum = be_add_products(sum, load16(q + d), be_load_codes(k, j, d, format));
    s[j] = be_tree(sum);
  }
}

// out_h[d] += w_h[j] * v_j[d], j in order, for four heads; w_h at w + 64 * h.
BE_AVX2_INLINE void weigh_4_heads(float *out, size_t stride, const float *w, be_code_rows v,
                                  size_t n, be_code_format format) {
  for (size_t d = 0; d < stride; d += 16) {
    float *o0 = out + d, *o1 = o0 + stride, *o2 = o1 + stride, *o3 = o2 + stride;
    tile o = {load16(o0), load16(o1), load16(o2), load16(o3)};
    for (size_t j = 0; j < n; j++) {
      be_m256x2 x = be_load_codes(v, j, d, format);
      o.t0 = be_add_products(o.t0, splat16(w + j), x);
      o.t1 = be_add_products(o.t1, splat16(w + BE_BLOCK_KEYS + j), x);
      o.t2 = be_add_products(o.t2, splat16(w + 2 * BE_BLOCK_KEYS + j), x);
      o.t3 = be_add_products(o.t3, splat16(w + 3 * BE_BLOCK_KEYS + j), x);
    }
    store16(o0, o.t0);
    store16(o1, o.t1);
    store16(o2, o.t2);
    store16(o3, o.t3);
  }
}

// The same for one head.
BE_AVX2_INLINE void weigh(float *out, size_t stride, const float *w, be_code_rows v, size_t n,
                          be_code_format format) {
  size_t d = 0;
  for (; d + 64 <= stride; d += 64) {
    tile o = {load16(out + d), load16(out + d + 16), load16(out + d + 32), load16(out + d + 48)};
    for (size_t j = 0; j < n; j++) {
      be_m256x2 p = splat16(w + j);
      o.t0 = be_add_products(o.t0, p, be_load_codes(v, j, d, format));
      o.t1 = be_add_products(o.t1, p, be_load_codes(v, j, d + 16, format));
      o.t2 = be_add_products(o.t2, p, be_load_codes(v, j, d + 32, format));
      o.t3 = be_add_products(o.t3, p, be_load_codes(v, j, d + 48, format));
    }
    store16(out + d, o.t0);
    store16(out + d + 16, o.t1);
    store16(out + d + 32, o.t2);
    store16(out + d + 48, o.t3);
  }
  for (; d < stride; d += 16) {
    be_m256x2 o = load16(out + d);
    for (size_t j = 0; j < n; j++)
      o = be_add_products(o, splat16(w + j), be_load_codes(v, j, d, format));
    store16(out + d, o);
  }
}

// See be_attend_block.
BE_AVX2_INLINE void attend_block(be_softmax *states, float *out, const float *q, size_t heads,
                                 size_t stride, be_code_rows k, be_code_rows v, size_t n,
                                 float scale, be_code_format format) {
  _Alignas(32) float s[BE_HEAD_TILE * BE_BLOCK_KEYS];
  if (heads == BE_HEAD_TILE)
    dots_of_4_heads(s, q, stride, k, v, n, format);
  else
    dots(s, q, stride, k, v, n, format);
  for (size_t h = 0; h < heads; h++) {
    float *scores = s + h * BE_BLOCK_KEYS;
    be_finish_scores(scores, k, n, scale, format);
    be_softmax_step_avx2(&states[h], scores, n, out + h * stride, stride);
    be_scale_weights(scores, v, n, format);
  }
  if (heads == BE_HEAD_TILE)
    weigh_4_heads(out, stride, s, v, n, format);
  else
    weigh(out, stride, s, v, n, format);
}

BE_AVX2_NOINLINE void attend_block_i8(be_softmax *states, float *out, const float *q, size_t heads,
                                      size_t stride, be_code_rows k, be_code_rows v, size_t n,
                                      float scale) {
  attend_block(states, out, q, heads, stride, k, v, n, scale, BE_CODES_I8);
}

BE_AVX2 void attention_i8_avx2(float *out, const float *q, const int8_t *k, const float *k_scale,
                               const int8_t *v, const float *v_scale, size_t n_heads, size_t n_keys,
                               size_t head_dim, float scale) {
  be_attend_quantized(
      attend_block_i8, BE_CODES_I8, out, q, be_rows_of(k, k_scale, head_dim, BE_CODES_I8),
      be_rows_of(v, v_scale, head_dim, BE_CODES_I8), n_heads, n_keys, head_dim, scale);
}

BE_AVX2_NOINLINE void attend_block_i4(be_softmax *states, float *out, const float *q, size_t heads,
                                      size_t stride, be_code_rows k, be_code_rows v, size_t n,
                                      float scale) {
  attend_block(states, out, q, heads, stride, k, v, n, scale, BE_CODES_I4);
}

BE_AVX2 void attention_i4_avx2(float *out, const float *q, const uint8_t *k,
                               const uint16_t *k_scale, const uint8_t *v, const uint16_t *v_scale,
                               size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  be_attend_quantized(
      attend_block_i4, BE_CODES_I4, out, q, be_rows_of(k, k_scale, head_dim, BE_CODES_I4),
      be_rows_of(v, v_scale, head_dim, BE_CODES_I4), n_heads, n_keys, head_dim, scale);
}
