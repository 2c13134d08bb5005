// SPDX-License-Identifier: MIT
// The loops of every vector kernel of attention; scalar/attention.c has the order of operations.
// One file per ISA includes this after it has defined, of 16 lanes as in lanes.h:
//
//   v16                                    zero16()  splat16(&x)  load16(x)  store16(y, v)
//   add_products(sum, a, b)  add16  subtract16  multiply16  exp16
//   greater16(a, m)                        a > m ? a : m in each lane
//   largest(m)                             of 16 numbers
//   tree(v)                                the sum of the lanes, as lanes.h adds them
//   store_dots(s, sums, queries, keys)     s[64 * h + i] = tree(sums[h * keys + i])
//   load_row(rows, j, d, format)           elements d .. d + 15 of row j, int8 without its scale
//   load_row_end(rows, j, d, n, format)    n < 16 floats and zeros behind them
//   INLINE  NOINLINE  UNROLL  TILE_QUERIES  TILE_SUMS
//
// A tile is up to 32 queries (heads of one token, then those of the next) against one block of 64
// keys. Few queries read the cache as it lies. For many, rows become floats in `wide` first, once
// for all of them, as many at a time as stay in the first-level cache with the queries.
//
//   scores: queries x keys sums, 16 lanes over d              TILE_QUERIES x TILE_SUMS / queries
//   values: queries x 16 consecutive d, one key after another    the same
//
// Arrays of sums have constant indices after unrolling: they are registers.
#include <stdbool.h>
#include <string.h>

#include "scalar/kv_rows.h"
#include "scalar/online_softmax.h"

enum {
  MAX_QUERIES = 32,
  MAX_FLOATS = 4096, // of queries, of outputs and of `wide`: 16 KB each
  MAX_WIDTH = 8,     // keys or registers of one step
  SLICE = 64,        // columns of values in `wide`, 64 rows of them
  PREFETCH_ROWS = 16
};

typedef struct tile {
  size_t n;     // queries
  size_t width; // head_dim rounded up to 16: what lies behind is zero
  be_keys keys[MAX_QUERIES];
  be_softmax states[MAX_QUERIES];
  _Alignas(64) float q[MAX_FLOATS], out[MAX_FLOATS], wide[MAX_FLOATS];
  _Alignas(64) float s[MAX_QUERIES][BE_BLOCK_KEYS]; // scores, then weights
} tile;

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t most(size_t a, size_t b) { return a > b ? a : b; }

// Keys or registers in one step of `queries` queries.
static inline size_t step_of(const size_t queries) { return least(TILE_SUMS / queries, MAX_WIDTH); }

static inline void prefetch_row(be_kv_rows rows, size_t j) {
  const uint8_t *row = rows.data + j * rows.row_bytes;
  for (size_t i = 0; i < rows.row_bytes; i += 64)
    __builtin_prefetch(row + i);
}

// The keys that all of the queries i .. i + count - 1 see; low >= high where there are none.
static inline be_keys seen_by_all(const tile *t, size_t i, size_t count) {
  be_keys all = t->keys[i];
  for (size_t h = i + 1; h < i + count; h++)
    all = (be_keys){most(all.low, t->keys[h].low), least(all.high, t->keys[h].high)};
  return all;
}

// The keys from the first to the last that any of them sees.
static inline be_keys seen_by_any(const tile *t, size_t i, size_t count) {
  be_keys any = {BE_BLOCK_KEYS, 0};
  for (size_t h = i; h < i + count; h++)
    if (t->keys[h].low < t->keys[h].high)
      any = (be_keys){least(any.low, t->keys[h].low), most(any.high, t->keys[h].high)};
  return any;
}

// Queries that go together, of `left` ones.
static inline size_t group_of(size_t left) {
  return left >= TILE_QUERIES ? TILE_QUERIES : left >= 2 ? 2 : 1;
}

// s[64 * h + i] = dot(q_h, k_(j+i)) for `queries` queries and `keys` rows.
INLINE void dots(float *s, const float *q, size_t width, const size_t queries, be_kv_rows k,
                 size_t j, const size_t keys, const be_kv_format format) {
  v16 sums[TILE_SUMS];
  UNROLL for (size_t i = 0; i < queries * keys; i++) { sums[i] = zero16(); }
  for (size_t d = 0; d < width; d += BE_LANES) {
    v16 x[TILE_QUERIES];
    UNROLL for (size_t h = 0; h < queries; h++) { x[h] = load16(q + h * width + d); }
    UNROLL for (size_t i = 0; i < keys; i++) {
      v16 key = load_row(k, j + i, d, format);
      UNROLL for (size_t h = 0; h < queries; h++) {
        sums[h * keys + i] = add_products(sums[h * keys + i], x[h], key);
      }
    }
  }
  store_dots(s, sums, queries, keys);
}

// Consecutive rows: row 0 is the block's key `first`, its elements begin with the model's `column`.
typedef struct part {
  be_kv_rows rows;
  size_t first, column;
} part;

// The dots of `queries` queries from i on with keys.low .. keys.high - 1. The first ones ask for
// the rows that come next, and for the block's values.
INLINE void score(tile *t, size_t i, const size_t queries, part k, be_kv_rows v, be_keys keys,
                  const be_kv_format format) {
  const size_t step = step_of(queries);
  const float *q = t->q + i * t->width;
  size_t j = keys.low;
  for (; j + step <= keys.high; j += step) {
    for (size_t row = j - k.first; i == 0 && row < j - k.first + step; row++) {
      prefetch_row(k.rows, row + PREFETCH_ROWS);
      prefetch_row(v, row);
    }
    dots(t->s[i] + j, q, t->width, queries, k.rows, j - k.first, step, format);
  }
  for (; j < keys.high; j++)
    dots(t->s[i] + j, q, t->width, queries, k.rows, j - k.first, 1, format);
}

// All queries, where they see some of the `count` rows of k. What a query does not see is scored
// with its neighbours and forgotten later.
INLINE void score_tile(tile *t, part k, be_kv_rows v, size_t count, const be_kv_format format) {
  for (size_t i = 0, queries; i < t->n; i += queries) {
    queries = group_of(t->n - i);
    be_keys keys = seen_by_any(t, i, queries);
    keys = (be_keys){most(keys.low, k.first), least(keys.high, k.first + count)};
    if (queries == TILE_QUERIES)
      score(t, i, TILE_QUERIES, k, v, keys, format);
    else if (queries == 2)
      score(t, i, 2, k, v, keys, format);
    else
      score(t, i, 1, k, v, keys, format);
  }
}

// out_h[d] += w_h[j] * v_j[d] for `registers` times 16 columns from d on, the rows in order.
INLINE void add_rows(tile *t, size_t i, const size_t queries, part v, be_keys keys, size_t d,
                     const size_t registers, const be_kv_format format) {
  float *out = t->out + i * t->width + d;
  const float *w = t->s[i];
  v16 sums[TILE_SUMS];
  UNROLL for (size_t h = 0; h < queries; h++) {
    UNROLL for (size_t r = 0; r < registers; r++) {
      sums[h * registers + r] = load16(out + h * t->width + BE_LANES * r);
    }
  }
  for (size_t j = keys.low; j < keys.high; j++) {
    v16 p[TILE_QUERIES];
    UNROLL for (size_t h = 0; h < queries; h++) { p[h] = splat16(w + h * BE_BLOCK_KEYS + j); }
    UNROLL for (size_t r = 0; r < registers; r++) {
      v16 value = load_row(v.rows, j - v.first, d - v.column + BE_LANES * r, format);
      UNROLL for (size_t h = 0; h < queries; h++) {
        sums[h * registers + r] = add_products(sums[h * registers + r], p[h], value);
      }
    }
  }
  UNROLL for (size_t h = 0; h < queries; h++) {
    UNROLL for (size_t r = 0; r < registers; r++) {
      store16(out + h * t->width + BE_LANES * r, sums[h * registers + r]);
    }
  }
}

// The same up to column `end`.
INLINE void weigh(tile *t, size_t i, const size_t queries, part v, be_keys keys, size_t end,
                  const be_kv_format format) {
  const size_t registers = step_of(queries);
  size_t d = v.column;
  if (keys.low >= keys.high)
    return;
  for (; d + BE_LANES * registers <= end; d += BE_LANES * registers)
    add_rows(t, i, queries, v, keys, d, registers, format);
  for (; d < end; d += BE_LANES)
    add_rows(t, i, queries, v, keys, d, 1, format);
}

typedef void weigh_one(tile *t, size_t i, part v, be_keys keys, size_t end);

// All queries over all rows of v. Those of one group go together over the keys that all see, and
// alone over the others: before those, and behind them.
INLINE void weigh_tile(tile *t, part v, size_t end, weigh_one *one, const be_kv_format format) {
  for (size_t i = 0, queries; i < t->n; i += queries) {
    queries = group_of(t->n - i);
    be_keys all = seen_by_all(t, i, queries);
    if (all.low >= all.high || queries == 1) {
      for (size_t h = i; h < i + queries; h++)
        one(t, h, v, t->keys[h], end);
      continue;
    }
    for (size_t h = i; h < i + queries; h++)
      if (t->keys[h].low < all.low)
        one(t, h, v, (be_keys){t->keys[h].low, all.low}, end);
    if (queries == TILE_QUERIES)
      weigh(t, i, TILE_QUERIES, v, all, end, format);
    else
      weigh(t, i, 2, v, all, end, format);
    for (size_t h = i; h < i + queries; h++)
      if (t->keys[h].high > all.high)
        one(t, h, v, (be_keys){all.high, t->keys[h].high}, end);
  }
}

// Columns begin .. end - 1 of n rows, as floats.
INLINE void widen_rows(float *y, be_kv_rows rows, size_t n, size_t begin, size_t end,
                       size_t head_dim, const be_kv_format format) {
  const bool codes = format == BE_KV_I8 || format == BE_KV_I4; // whose rows are padded
  const size_t whole = codes || end <= head_dim ? end : head_dim / BE_LANES * BE_LANES;
  for (size_t j = 0; j < n; j++) {
    for (size_t d = begin; d < whole; d += BE_LANES, y += BE_LANES)
      store16(y, load_row(rows, j, d, format));
    for (size_t d = most(begin, whole); d < end; d += BE_LANES, y += BE_LANES)
      store16(y, load_row_end(rows, j, d, head_dim - d, format));
  }
}

// What is done once for each format. One function per loop: alone, each gets all registers.
typedef struct format_loops {
  be_kv_format format;
  size_t narrow; // up to this many queries read the rows as they lie
  void (*score)(tile *t, part k, be_kv_rows v, size_t count);
  void (*weigh)(tile *t, part v, size_t end);
  void (*widen)(float *y, be_kv_rows rows, size_t n, size_t begin, size_t end, size_t head_dim);
} format_loops;

#define DEFINE_LOOPS(F, narrow)                                                                    \
  NOINLINE void score_##F(tile *t, part k, be_kv_rows v, size_t count) {                           \
    score_tile(t, k, v, count, BE_KV_##F);                                                         \
  }                                                                                                \
  NOINLINE void weigh_one_##F(tile *t, size_t i, part v, be_keys keys, size_t end) {               \
    weigh(t, i, 1, v, keys, end, BE_KV_##F);                                                       \
  }                                                                                                \
  NOINLINE void weigh_##F(tile *t, part v, size_t end) {                                           \
    weigh_tile(t, v, end, weigh_one_##F, BE_KV_##F);                                               \
  }                                                                                                \
  NOINLINE void widen_##F(float *y, be_kv_rows rows, size_t n, size_t begin, size_t end,           \
                          size_t head_dim) {                                                       \
    widen_rows(y, rows, n, begin, end, head_dim, BE_KV_##F);                                       \
  }                                                                                                \
  static const format_loops loops_##F = {BE_KV_##F, narrow, score_##F, weigh_##F, widen_##F};

DEFINE_LOOPS(F32, MAX_QUERIES)
DEFINE_LOOPS(F16, 2 * TILE_QUERIES)
DEFINE_LOOPS(I8, TILE_QUERIES)
DEFINE_LOOPS(I4, TILE_QUERIES)

// The dots of one query to scores, -inf around its keys in whole lanes; returns the largest of them
// and the maximum before. Scales are those of the block's key `first` on.
INLINE float finish_scores(tile *t, size_t i, const float *k_scales, size_t first, float scale) {
  const be_keys keys = t->keys[i];
  const size_t low = keys.low / BE_LANES * BE_LANES;
  const v16 factor = splat16(&scale);
  float *s = t->s[i];
  for (size_t j = keys.low; k_scales && j < keys.high; j++)
    s[j] *= k_scales[j - first];
  for (size_t j = low; j < keys.high; j += BE_LANES)
    store16(s + j, multiply16(load16(s + j), factor));
  for (size_t j = low; j < keys.low; j++)
    s[j] = -INFINITY;
  for (size_t j = keys.high; j % BE_LANES != 0; j++)
    s[j] = -INFINITY;
  v16 m = splat16(&t->states[i].max);
  for (size_t j = low; j < keys.high; j += BE_LANES)
    m = greater16(load16(s + j), m);
  return largest(m);
}

// Moves one query to its new maximum.
INLINE void move(tile *t, size_t i, float max) {
  const float correction = be_exp(t->states[i].max - max);
  const v16 c = splat16(&correction);
  float *out = t->out + i * t->width, *sum = t->states[i].sum.lane;
  t->states[i].max = max;
  store16(sum, multiply16(load16(sum), c));
  for (size_t d = 0; d < t->width; d += BE_LANES)
    store16(out + d, multiply16(load16(out + d), c));
}

// Scores to weights of the rows of values, and their sum.
INLINE void finish_weights(tile *t, size_t i, const float *v_scales, size_t first) {
  const be_keys keys = t->keys[i];
  const v16 max = splat16(&t->states[i].max);
  float *s = t->s[i], *lanes = t->states[i].sum.lane;
  v16 sum = load16(lanes);
  for (size_t j = keys.low / BE_LANES * BE_LANES; j < keys.high; j += BE_LANES) {
    v16 p = exp16(subtract16(load16(s + j), max));
    store16(s + j, p);
    sum = add16(sum, p);
  }
  store16(lanes, sum);
  for (size_t j = keys.low; v_scales && j < keys.high; j++)
    s[j] *= v_scales[j - first];
}

// be_softmax_step for every query; one step of all before the next one of any, because a query's
// own steps wait for each other.
NOINLINE void softmax_tile(tile *t, const float *k_scales, const float *v_scales, size_t first,
                           float scale) {
  float max[MAX_QUERIES];
  for (size_t i = 0; i < t->n; i++)
    max[i] = finish_scores(t, i, k_scales, first, scale);
  for (size_t i = 0; i < t->n; i++)
    if (max[i] > t->states[i].max)
      move(t, i, max[i]);
  for (size_t i = 0; i < t->n; i++)
    finish_weights(t, i, v_scales, first);
}

// One block of keys, of which rows 0 .. of k and v are `keys`.
NOINLINE void attend_block(tile *t, be_kv_rows k, be_kv_rows v, be_keys keys, size_t head_dim,
                           float scale, const format_loops *loops) {
  const size_t n = keys.high - keys.low;
  const bool scaled = loops->format == BE_KV_I8, ragged = t->width != head_dim;
  const bool wide = ragged || t->n > loops->narrow;
  if (!wide) {
    loops->score(t, (part){k, keys.low, 0}, v, n);
  } else {
    const size_t count = MAX_FLOATS / t->width / MAX_WIDTH * MAX_WIDTH;
    for (size_t j = 0; j < n; j += count) {
      const size_t rows = least(count, n - j);
      loops->widen(t->wide, be_kv_rows_from(k, j), rows, 0, t->width, head_dim);
      be_kv_rows floats = be_kv_rows_of(t->wide, NULL, t->width, BE_KV_F32);
      score_F32(t, (part){floats, keys.low + j, 0}, be_kv_rows_from(v, j), rows);
    }
  }
  softmax_tile(t, scaled ? (const float *)(const void *)k.scales : NULL,
               scaled ? (const float *)(const void *)v.scales : NULL, keys.low, scale);
  if (!wide) {
    loops->weigh(t, (part){v, keys.low, 0}, t->width);
  } else {
    for (size_t d = 0; d < t->width; d += SLICE) {
      const size_t end = least(d + SLICE, t->width);
      loops->widen(t->wide, v, n, d, end, head_dim);
      be_kv_rows floats = be_kv_rows_of(t->wide, NULL, end - d, BE_KV_F32);
      weigh_F32(t, (part){floats, keys.low, d}, end);
    }
  }
}

// Where query `index` of the call begins in q and out.
static inline size_t query_at(const be_attention *a, size_t index) {
  return index / a->n_heads * a->stride + index % a->n_heads * a->head_dim;
}

NOINLINE void attend_segment(tile *t, const be_attention *a, size_t first, const be_kv_segment *s,
                             const format_loops *loops) {
  const be_kv_rows k = be_kv_rows_of(s->k, s->k_scales, a->head_dim, loops->format);
  const be_kv_rows v = be_kv_rows_of(s->v, s->v_scales, a->head_dim, loops->format);
  for (size_t i = 0; i < t->n; i++)
    memcpy(t->q + i * t->width, s->q + query_at(a, first + i), a->head_dim * sizeof *t->q);
  for (size_t b = s->first / BE_BLOCK_KEYS * BE_BLOCK_KEYS; b < s->end; b += BE_BLOCK_KEYS) {
    for (size_t i = 0; i < t->n; i++)
      t->keys[i] = be_keys_seen(s, a->position + (first + i) / a->n_heads, b);
    be_keys keys = seen_by_any(t, 0, t->n);
    if (keys.low >= keys.high)
      continue;
    size_t row = b + keys.low - s->first;
    attend_block(t, be_kv_rows_from(k, row), be_kv_rows_from(v, row), keys, a->head_dim, a->scale,
                 loops);
  }
}

NOINLINE void attend(const be_attention *a, const format_loops *loops) {
  tile t;
  t.width = (a->head_dim + BE_LANES - 1) / BE_LANES * BE_LANES;
  const size_t total = a->n_tokens * a->n_heads, count = least(MAX_QUERIES, MAX_FLOATS / t.width);
  for (size_t first = 0; first < total; first += count) {
    t.n = least(count, total - first);
    for (size_t i = 0; i < t.n; i++)
      t.states[i] = (be_softmax){.max = -INFINITY};
    memset(t.out, 0, t.n * t.width * sizeof *t.out);
    if (t.width != a->head_dim)
      memset(t.q, 0, t.n * t.width * sizeof *t.q);
    for (size_t s = 0; s < a->n_segments; s++)
      attend_segment(&t, a, first, &a->segments[s], loops);
    for (size_t i = 0; i < t.n; i++) {
      float *out = a->out + query_at(a, first + i);
      const float inverse = 1.0f / tree(load16(t.states[i].sum.lane));
      for (size_t d = 0; d < a->head_dim; d++)
        out[d] = t.out[i * t.width + d] * inverse;
    }
  }
}
