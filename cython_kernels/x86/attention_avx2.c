// SPDX-License-Identifier: MIT
// One-pass causal attention, see scalar/attention.c for the order of operations.
//
// Blocks of keys are the outer loop, heads the inner one, in tiles of 2 or 1: a tile shares the
// loads (and conversions) of a row of keys or values. `out` itself holds the running weighted sum
// between blocks.
//
//   scores: heads x keys sums of two registers (16 lanes)      2x2, 1x4
//   values: heads x registers of 8 consecutive d               2x4, 1x8
//
// Arrays of sums have constant indices after unrolling: they are registers.
#include <stdbool.h>

#include "x86/avx2.h"
#include "x86/online_softmax_avx2.h"

enum { BLOCK_KEYS = 64, MAX_TILE = 2 };

// Everything that stays the same through one call.
typedef struct problem {
  const float *q;
  float *out;
  size_t head_dim;
  float scale;
  be_float_format format;
} problem;

BE_AVX2_INLINE const void *row_at(const problem *p, const void *cache, size_t row) {
  return (const uint8_t *)cache + row * p->head_dim * be_float_bytes(p->format);
}

// Asks for elements d .. d + n - 1 of the same row of the next block, once for all heads.
// Worth 1.5x from DRAM.
BE_AVX2_INLINE void prefetch_next(const problem *p, size_t head, const void *row, size_t d,
                                  size_t n) {
  if (head != 0)
    return;
  const char *next = (const char *)row_at(p, row, BLOCK_KEYS);
  for (size_t i = 0; i < n * be_float_bytes(p->format); i += 64)
    _mm_prefetch(next + d * be_float_bytes(p->format) + i, _MM_HINT_T1);
}

// 16 elements of a row of head_dim from d on; `ragged`, a constant: fewer, and zeros behind them.
BE_AVX2_INLINE be_m256x2 load(const problem *p, const void *row, size_t d, const bool ragged,
                              be_float_format format) {
  return ragged ? be_load16_partial(row, d, p->head_dim - d, format) : be_load16(row, d, format);
}

BE_AVX2_INLINE void add_products(be_m256x2 *sums, const problem *p, size_t head, const size_t heads,
                                 const void *k, const size_t keys, size_t d, const bool ragged) {
  be_m256x2 q[MAX_TILE];
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    q[h] = load(p, p->q + (head + h) * p->head_dim, d, ragged, BE_FORMAT_F32);
  }
  BE_UNROLL for (size_t i = 0; i < keys; i++) {
    const void *row = row_at(p, k, i);
    prefetch_next(p, head, row, d, 16);
    be_m256x2 key = load(p, row, d, ragged, p->format);
    BE_UNROLL for (size_t h = 0; h < heads; h++) {
      sums[h * keys + i] = be_add_products(sums[h * keys + i], q[h], key);
    }
  }
}

// s[h][j] = dot(q_h, k_j) * scale for `keys` (1, 2 or 4) consecutive keys and a tile of heads.
BE_AVX2_INLINE void score(float (*s)[BLOCK_KEYS], const problem *p, size_t head, const size_t heads,
                          const void *k, size_t j, const size_t keys) {
  be_m256x2 sums[4];
  const be_m256x2 zero = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  BE_UNROLL for (size_t i = 0; i < heads * keys; i++) { sums[i] = zero; }
  const void *row = row_at(p, k, j);
  size_t d = 0;
  for (; d + 16 <= p->head_dim; d += 16)
    add_products(sums, p, head, heads, row, keys, d, false);
  if (d < p->head_dim)
    add_products(sums, p, head, heads, row, keys, d, true);
  if (heads * keys == 4) {
    _Alignas(16) float dots[4];
    __m128 trees = be_tree_of_4(sums[0], sums[1], sums[2], sums[3]);
    _mm_store_ps(dots, _mm_mul_ps(trees, _mm_set1_ps(p->scale)));
    for (size_t h = 0; h < heads; h++)
      memcpy(s[h] + j, dots + h * keys, keys * sizeof *dots);
  } else {
    for (size_t i = 0; i < heads * keys; i++)
      s[i / keys][j + i % keys] = be_tree(sums[i]) * p->scale;
  }
}

// Scores of n keys, -inf up to the next multiple of 16.
BE_AVX2_INLINE void score_block(float (*s)[BLOCK_KEYS], const problem *p, size_t head,
                                const size_t heads, const void *k, size_t n) {
  const size_t keys = 4 / heads;
  size_t j = 0;
  for (; j + (size_t)keys <= n; j += (size_t)keys)
    score(s, p, head, heads, k, j, keys);
  for (; j < n; j++)
    score(s, p, head, heads, k, j, 1);
  for (; j % BE_LANES != 0; j++)
    for (size_t h = 0; h < heads; h++)
      s[h][j] = -INFINITY;
}

// The step of every attention, not inlined: the constants of
// exp would take registers from the loops around it.
BE_AVX2_NOINLINE void softmax_step(be_softmax *state, float *s, size_t n, float *out,
                                   size_t head_dim) {
  be_softmax_step_avx2(state, s, n, out, head_dim);
}

// out[h][d] += p_hj * v_j[d], j in order, for `registers` times 8 consecutive d.
BE_AVX2_INLINE void weigh(const problem *p, size_t head, const size_t heads,
                          float (*weight)[BLOCK_KEYS], const void *v, size_t n, size_t d,
                          const size_t registers) {
  __m256 sums[8];
  BE_UNROLL for (size_t i = 0; i < heads * registers; i++) {
    sums[i] =
        _mm256_loadu_ps(p->out + (head + i / registers) * p->head_dim + d + i % registers * 8);
  }
  for (size_t j = 0; j < n; j++) {
    const void *row = row_at(p, v, j);
    prefetch_next(p, head, row, d, 8 * (size_t)registers);
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      __m256 value = be_load8(row, d + 8 * i, p->format);
      BE_UNROLL for (size_t h = 0; h < heads; h++) {
        __m256 product = _mm256_mul_ps(_mm256_broadcast_ss(&weight[h][j]), value);
        sums[h * registers + i] = _mm256_add_ps(sums[h * registers + i], product);
      }
    }
  }
  BE_UNROLL for (size_t i = 0; i < heads * registers; i++) {
    _mm256_storeu_ps(p->out + (head + i / registers) * p->head_dim + d + i % registers * 8,
                     sums[i]);
  }
}

// The last d, fewer than 8.
BE_AVX2_INLINE void weigh_rest(const problem *p, size_t head, const float *weight, const void *v,
                               size_t n, size_t d) {
  size_t count = p->head_dim - d;
  float *out = p->out + head * p->head_dim + d, sum[BE_LANES];
  __m256 o = be_load16_partial(out, 0, count, BE_FORMAT_F32).low;
  for (size_t j = 0; j < n; j++) {
    __m256 value = be_load16_partial(row_at(p, v, j), d, count, p->format).low;
    o = _mm256_add_ps(o, _mm256_mul_ps(_mm256_broadcast_ss(weight + j), value));
  }
  _mm256_storeu_ps(sum, o);
  memcpy(out, sum, count * sizeof *out);
}

BE_AVX2_INLINE void weigh_block(const problem *p, size_t head, const size_t heads,
                                float (*weight)[BLOCK_KEYS], const void *v, size_t n) {
  const size_t registers = 8 / heads;
  size_t d = 0, step = 8 * (size_t)registers;
  for (; d + step <= p->head_dim; d += step)
    weigh(p, head, heads, weight, v, n, d, registers);
  for (; d + 16 <= p->head_dim; d += 16)
    weigh(p, head, heads, weight, v, n, d, 2);
  for (; d + 8 <= p->head_dim; d += 8)
    weigh(p, head, heads, weight, v, n, d, 1);
  for (size_t h = 0; d < p->head_dim && h < heads; h++)
    weigh_rest(p, head + h, weight[h], v, n, d);
}

// One tile of heads over one block of keys.
BE_AVX2_INLINE void attend_tile(problem p, be_float_format format, be_softmax *states, size_t head,
                                const size_t heads, const void *k, const void *v, size_t n) {
  p.format = format; // again, as a constant
  _Alignas(32) float s[MAX_TILE][BLOCK_KEYS];
  score_block(s, &p, head, heads, k, n);
  for (size_t h = 0; h < heads; h++)
    softmax_step(&states[head + h], s[h], n, p.out + (head + h) * p.head_dim, p.head_dim);
  weigh_block(&p, head, heads, s, v, n);
}

// One function per tile and format: alone, each gets all registers.
typedef void tile(const problem *p, be_softmax *states, size_t head, const void *k, const void *v,
                  size_t n);
#define DEFINE_TILE(heads, format)                                                                 \
  BE_AVX2_NOINLINE void attend_##heads##_##format(                                                 \
      const problem *p, be_softmax *states, size_t head, const void *k, const void *v, size_t n) { \
    attend_tile(*p, BE_FORMAT_##format, states, head, heads, k, v, n);                             \
  }
DEFINE_TILE(2, F32)
DEFINE_TILE(1, F32)
DEFINE_TILE(2, F16)
DEFINE_TILE(1, F16)

// tiles[n]: the tile of n heads.
BE_AVX2 static void attend(tile *const *tiles, float *out, const float *q, const void *k,
                           const void *v, size_t n_heads, size_t n_keys, size_t head_dim,
                           float scale, be_float_format format) {
  const problem p = {q, out, head_dim, scale, format};
  be_softmax states[BE_MAX_HEADS_PER_KV];
  for (size_t h = 0; h < n_heads; h++)
    states[h] = (be_softmax){.max = -INFINITY};
  memset(out, 0, n_heads * head_dim * sizeof *out);

  for (size_t j0 = 0; j0 < n_keys; j0 += BLOCK_KEYS) {
    size_t n = n_keys - j0 < BLOCK_KEYS ? n_keys - j0 : BLOCK_KEYS, h = 0;
    const void *keys = row_at(&p, k, j0), *values = row_at(&p, v, j0);
    for (; h + 2 <= n_heads; h += 2)
      tiles[2](&p, states, h, keys, values, n);
    if (h < n_heads)
      tiles[1](&p, states, h, keys, values, n);
  }

  for (size_t h = 0; h < n_heads; h++) {
    float inverse = 1.0f / be_tree(be_load16(states[h].sum.lane, 0, BE_FORMAT_F32));
    for (size_t d = 0; d < head_dim; d++)
      out[h * head_dim + d] *= inverse;
  }
}

BE_AVX2 void attention_f32_avx2(float *out, const float *q, const float *k, const float *v,
                                size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  static tile *const tiles[] = {0, attend_1_F32, attend_2_F32};
  attend(tiles, out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F32);
}

BE_AVX2 void attention_f16_avx2(float *out, const float *q, const uint16_t *k, const uint16_t *v,
                                size_t n_heads, size_t n_keys, size_t head_dim, float scale) {
  static tile *const tiles[] = {0, attend_1_F16, attend_2_F16};
  attend(tiles, out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F16);
}
