// SPDX-License-Identifier: MIT
// One-pass causal attention, see scalar/attention.c for the order of operations.
//
// Blocks of keys are the outer loop, heads the inner one, in tiles of 4, 2 or 1: a tile shares
// the loads (and conversions) of a row of keys or values. `out` itself holds the running weighted
// sum between blocks.
//
//   scores: heads x keys sums, one register each (16 lanes)     4x4, 2x8, 1x8
//   values: heads x registers of 16 consecutive d               4x4, 2x8, 1x8
//
// Arrays of sums have constant indices after unrolling: they are registers.
#include "x86/avx512.h"

enum { BLOCK_KEYS = 64, MAX_SUMS = 16, MAX_TILE = 4 };

typedef struct head_state {
  float max;
  float sum[BE_LANES];
} head_state;

// Everything that stays the same through one call.
typedef struct problem {
  const float *q;
  float *out;
  size_t head_dim;
  float scale;
  be_float_format format;
} problem;

BE_AVX512_INLINE const void *row_at(const problem *p, const void *cache, size_t row) {
  return (const uint8_t *)cache + row * p->head_dim * be_float_bytes(p->format);
}

// Asks for elements d .. d + n - 1 of the same row of the next block, once for all heads.
// Worth 1.5x from DRAM.
BE_AVX512_INLINE void prefetch_next(const problem *p, size_t head, const void *row, size_t d,
                                    size_t n) {
  if (head != 0)
    return;
  const char *next = (const char *)row_at(p, row, BLOCK_KEYS);
  for (size_t i = 0; i < n * be_float_bytes(p->format); i += 64)
    _mm_prefetch(next + d * be_float_bytes(p->format) + i, _MM_HINT_T1);
}

BE_AVX512_INLINE void add_products(__m512 *sums, const problem *p, size_t head, const size_t heads,
                                   const void *k, const size_t keys, size_t d, __mmask16 mask) {
  __m512 q[MAX_TILE];
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    q[h] = be_load16_masked(p->q + (head + h) * p->head_dim, d, mask, BE_FORMAT_F32);
  }
  BE_UNROLL for (size_t i = 0; i < keys; i++) {
    const void *row = row_at(p, k, i);
    prefetch_next(p, head, row, d, 16);
    __m512 key = be_load16_masked(row, d, mask, p->format);
    BE_UNROLL for (size_t h = 0; h < heads; h++) {
      sums[h * keys + i] = be_add_product16(sums[h * keys + i], q[h], key);
    }
  }
}

// s[h][j] = dot(q_h, k_j) * scale for `keys` (1, 4 or 8) consecutive keys and a tile of heads.
BE_AVX512_INLINE void score(float (*s)[BLOCK_KEYS], const problem *p, size_t head,
                            const size_t heads, const void *k, size_t j, const size_t keys) {
  __m512 sums[MAX_SUMS];
  BE_UNROLL for (size_t i = 0; i < heads * keys; i++) { sums[i] = _mm512_setzero_ps(); }
  const void *row = row_at(p, k, j);
  size_t d = 0;
  for (; d + 16 <= p->head_dim; d += 16)
    add_products(sums, p, head, heads, row, keys, d, 0xffff);
  if (d < p->head_dim)
    add_products(sums, p, head, heads, row, keys, d, be_first_lanes(p->head_dim - d));
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    const __m512 *sum = sums + h * keys;
    if (keys == 1)
      s[h][j] = be_tree16(sum[0]) * p->scale;
    BE_UNROLL for (size_t i = 0; i + 4 <= keys; i += 4) {
      __m128 dots = be_tree_of_4(be_halves(sum[i]), be_halves(sum[i + 1]), be_halves(sum[i + 2]),
                                 be_halves(sum[i + 3]));
      _mm_store_ps(s[h] + j + i, _mm_mul_ps(dots, _mm_set1_ps(p->scale)));
    }
  }
}

// Scores of n keys, -inf up to the next multiple of 16.
BE_AVX512_INLINE void score_block(float (*s)[BLOCK_KEYS], const problem *p, size_t head,
                                  const size_t heads, const void *k, size_t n) {
  const size_t keys = heads == 4 ? 4 : 8;
  size_t j = 0;
  for (; j + (size_t)keys <= n; j += (size_t)keys)
    score(s, p, head, heads, k, j, keys);
  for (; j < n; j++)
    score(s, p, head, heads, k, j, 1);
  for (; j % BE_LANES != 0; j++)
    for (size_t h = 0; h < heads; h++)
      s[h][j] = -INFINITY;
}

// Turns scores into weights and moves the head to the new maximum. Not inlined: the constants of
// exp would take registers from the loops around it.
BE_AVX512_NOINLINE void softmax_step(head_state *state, float *s, size_t n, float *out,
                                     size_t head_dim) {
  __m512 m = _mm512_set1_ps(state->max);
  for (size_t j = 0; j < n; j += 16)
    m = _mm512_max_ps(_mm512_load_ps(s + j), m); // second operand where the score is a NaN
  float b = _mm512_reduce_max_ps(m);             // of numbers: the same in any order

  __m512 sum = _mm512_loadu_ps(state->sum);
  if (b > state->max) {
    const __m512 c = _mm512_set1_ps(be_exp(state->max - b));
    sum = _mm512_mul_ps(sum, c);
    for (size_t d = 0; d < head_dim; d += 16) {
      __mmask16 mask = be_first_lanes(head_dim - d);
      __m512 o = _mm512_maskz_loadu_ps(mask, out + d);
      _mm512_mask_storeu_ps(out + d, mask, _mm512_mul_ps(o, c));
    }
    state->max = b;
  }
  const __m512 max = _mm512_set1_ps(state->max);
  for (size_t j = 0; j < n; j += 16) {
    __m512 p = be_exp16(_mm512_sub_ps(_mm512_load_ps(s + j), max));
    _mm512_store_ps(s + j, p);
    sum = _mm512_add_ps(sum, p);
  }
  _mm512_storeu_ps(state->sum, sum);
}

// out[h][d] += p_hj * v_j[d], j in order, for `registers` times 16 consecutive d; `last` masks the
// last of them.
BE_AVX512_INLINE void weigh(const problem *p, size_t head, const size_t heads,
                            float (*weight)[BLOCK_KEYS], const void *v, size_t n, size_t d,
                            const size_t registers, __mmask16 last) {
  __m512 sums[MAX_SUMS];
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      sums[h * registers + i] = _mm512_maskz_loadu_ps(
          i + 1 < registers ? 0xffff : last, p->out + (head + h) * p->head_dim + d + 16 * i);
    }
  }
  for (size_t j = 0; j < n; j++) {
    const void *row = row_at(p, v, j);
    prefetch_next(p, head, row, d, 16 * (size_t)registers);
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      __m512 value =
          be_load16_masked(row, d + 16 * i, i + 1 < registers ? 0xffff : last, p->format);
      BE_UNROLL for (size_t h = 0; h < heads; h++) {
        sums[h * registers + i] =
            be_add_product16(sums[h * registers + i], _mm512_set1_ps(weight[h][j]), value);
      }
    }
  }
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      _mm512_mask_storeu_ps(p->out + (head + h) * p->head_dim + d + 16 * i,
                            i + 1 < registers ? 0xffff : last, sums[h * registers + i]);
    }
  }
}

BE_AVX512_INLINE void weigh_block(const problem *p, size_t head, const size_t heads,
                                  float (*weight)[BLOCK_KEYS], const void *v, size_t n) {
  const size_t registers = heads == 4 ? 4 : 8;
  size_t d = 0, step = 16 * (size_t)registers;
  for (; d + step <= p->head_dim; d += step)
    weigh(p, head, heads, weight, v, n, d, registers, 0xffff);
  for (; d + 64 <= p->head_dim; d += 64)
    weigh(p, head, heads, weight, v, n, d, 4, 0xffff);
  for (; d < p->head_dim; d += 16)
    weigh(p, head, heads, weight, v, n, d, 1, be_first_lanes(p->head_dim - d));
}

// One tile of heads over one block of keys.
BE_AVX512_INLINE void attend_tile(problem p, be_float_format format, head_state *states,
                                  size_t head, const size_t heads, const void *k, const void *v,
                                  size_t n) {
  p.format = format; // again, as a constant
  _Alignas(64) float s[MAX_TILE][BLOCK_KEYS];
  score_block(s, &p, head, heads, k, n);
  for (size_t h = 0; h < heads; h++)
    softmax_step(&states[head + h], s[h], n, p.out + (head + h) * p.head_dim, p.head_dim);
  weigh_block(&p, head, heads, s, v, n);
}

// One function per tile and format: alone, each gets all registers.
typedef void tile(const problem *p, head_state *states, size_t head, const void *k, const void *v,
                  size_t n);
#define DEFINE_TILE(heads, format)                                                                 \
  BE_AVX512_NOINLINE void attend_##heads##_##format(                                               \
      const problem *p, head_state *states, size_t head, const void *k, const void *v, size_t n) { \
    attend_tile(*p, BE_FORMAT_##format, states, head, heads, k, v, n);                             \
  }
DEFINE_TILE(4, F32)
DEFINE_TILE(2, F32)
DEFINE_TILE(1, F32)
DEFINE_TILE(4, F16)
DEFINE_TILE(2, F16)
DEFINE_TILE(1, F16)

// tiles[n]: the tile of n heads.
BE_AVX512 static void attend(tile *const *tiles, float *out, const float *q, const void *k,
                             const void *v, size_t n_heads, size_t n_keys, size_t head_dim,
                             float scale, be_float_format format) {
  const problem p = {q, out, head_dim, scale, format};
  head_state states[BE_MAX_HEADS_PER_KV];
  for (size_t h = 0; h < n_heads; h++)
    states[h] = (head_state){.max = -INFINITY};
  memset(out, 0, n_heads * head_dim * sizeof *out);

  for (size_t j0 = 0; j0 < n_keys; j0 += BLOCK_KEYS) {
    size_t n = n_keys - j0 < BLOCK_KEYS ? n_keys - j0 : BLOCK_KEYS, h = 0;
    const void *keys = row_at(&p, k, j0), *values = row_at(&p, v, j0);
    for (; h + 4 <= n_heads; h += 4)
      tiles[4](&p, states, h, keys, values, n);
    for (; h + 2 <= n_heads; h += 2)
      tiles[2](&p, states, h, keys, values, n);
    if (h < n_heads)
      tiles[1](&p, states, h, keys, values, n);
  }

  for (size_t h = 0; h < n_heads; h++) {
    float inverse = 1.0f / be_tree16(_mm512_loadu_ps(states[h].sum));
    for (size_t d = 0; d < head_dim; d++)
      out[h * head_dim + d] *= inverse;
  }
}

BE_AVX512 void attention_f32_avx512_vnni(float *out, const float *q, const float *k, const float *v,
                                         size_t n_heads, size_t n_keys, size_t head_dim,
                                         float scale) {
  static tile *const tiles[] = {0, attend_1_F32, attend_2_F32, 0, attend_4_F32};
  attend(tiles, out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F32);
}

BE_AVX512 void attention_f16_avx512_vnni(float *out, const float *q, const uint16_t *k,
                                         const uint16_t *v, size_t n_heads, size_t n_keys,
                                         size_t head_dim, float scale) {
  static tile *const tiles[] = {0, attend_1_F16, attend_2_F16, 0, attend_4_F16};
  attend(tiles, out, q, k, v, n_heads, n_keys, head_dim, scale, BE_FORMAT_F16);
}
