// SPDX-License-Identifier: MIT
// attention_f32, attention_f16, attention_i8 and attention_i4.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

typedef enum format { F32, F16, I8, I4 } format;

typedef struct shape {
  size_t n_heads, n_tokens, n_keys, head_dim; // n_keys positions, the tokens' own the last ones
} shape;

// Rows of keys or values.
typedef struct rows {
  void *data, *scales;
} rows;

static size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

static size_t row_bytes(format f, size_t head_dim) {
  return f == F32   ? 4 * head_dim
         : f == F16 ? 2 * head_dim
         : f == I8  ? round_up(head_dim, 16)
                    : round_up(head_dim, 32) / 2;
}

static size_t scale_bytes(format f, size_t head_dim) {
  return f == I8 ? 4 : f == I4 ? round_up(head_dim, 32) / 16 : 0;
}

static float bf16_value(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

// Row j, as an append would write it.
static void write_row(rows r, format f, size_t head_dim, size_t j, const float *x) {
  float inverse;
  int32_t sum;
  void *row = (uint8_t *)r.data + j * row_bytes(f, head_dim);
  void *scales = (uint8_t *)r.scales + j * scale_bytes(f, head_dim);
  if (f == F32) {
    memcpy(row, x, head_dim * sizeof *x);
  } else if (f == F16) {
    f32_to_f16_scalar(row, x, head_dim);
  } else if (f == I8) {
    quantize_i8_scalar(row, &inverse, &sum, x, head_dim);
    *(float *)scales = 1.0f / inverse;
  } else {
    quantize_kv_i4_scalar(row, scales, x, head_dim);
  }
}

static void fill_rows(rows r, format f, shape s, kc_fill fill) {
  float x[BE_MAX_HEAD_DIM];
  for (size_t j = 0; j < s.n_keys; j++) {
    kc_fill_f32(x, s.head_dim, fill);
    write_row(r, f, s.head_dim, j, x);
  }
}

// Any code under the scales that are there, also those that no append writes (-128). Padding stays,
// and so do the zeros that an append writes under an infinite scale.
static void fill_codes(rows r, format f, shape s) {
  size_t groups = round_up(s.head_dim, 32) / 32;
  for (size_t j = 0; j < s.n_keys; j++) {
    uint8_t *row = (uint8_t *)r.data + j * row_bytes(f, s.head_dim);
    for (size_t d = 0; d < s.head_dim; d++) {
      uint8_t code = kc_random() & 1 ? (uint8_t)kc_random() : 0x80;
      if (f == I8)
        row[d] = code;
      else if (isfinite(bf16_value(((uint16_t *)r.scales)[j * groups + d / 32]))) {
        uint8_t *byte = row + d / 32 * 16 + d % 16;
        *byte = d % 32 < 16 ? (*byte & 0xf0) | code >> 4 : (*byte & 0x0f) | (code & 0xf0);
      }
    }
  }
}

static double element(rows r, format f, size_t head_dim, size_t j, size_t d) {
  const uint8_t *row = (uint8_t *)r.data + j * row_bytes(f, head_dim);
  if (f == F32)
    return (double)((const float *)(const void *)row)[d];
  if (f == F16) {
    float y;
    f16_to_f32_scalar(&y, (const uint16_t *)(const void *)row + d, 1);
    return (double)y;
  }
  if (f == I8)
    return (double)(int8_t)row[d] * (double)((float *)r.scales)[j];
  int code = (row[d / 32 * 16 + d % 16] >> (d % 32 < 16 ? 0 : 4) & 15) - 8;
  return code *
         (double)bf16_value(((uint16_t *)r.scales)[j * (round_up(head_dim, 32) / 32) + d / 32]);
}

static void run(const be_kernels *kernels, format f, const be_attention *a) {
  if (f == F32)
    kernels->attention_f32(a);
  else if (f == F16)
    kernels->attention_f16(a);
  else if (f == I8)
    kernels->attention_i8(a);
  else
    kernels->attention_i4(a);
}

// --- problems ----------------------------------------------------------------------------------

enum { MAX_SEGMENTS = 4, MAX_OUT = 1 << 16 };

// Sinks, and a window over the rest; neither: sinks = 0, window = SIZE_MAX.
typedef struct view {
  size_t sinks, window;
} view;

typedef struct problem {
  shape s;
  format f;
  view view;
  float *q, *sink_q, *out;
  size_t stride;
  rows k, v; // position p in row p
  be_kv_segment segments[MAX_SEGMENTS];
  be_attention a;
} problem;

// NULL where rows are no codes; an offset from NULL, even 0, is undefined.
static const void *scales_from(const rows *r, size_t offset) {
  return r->scales ? (const uint8_t *)r->scales + offset : NULL;
}

static void add_segment(problem *p, size_t first, size_t end, size_t window, const float *q) {
  size_t data = first * row_bytes(p->f, p->s.head_dim);
  size_t scales = first * scale_bytes(p->f, p->s.head_dim);
  if (first < end)
    p->segments[p->a.n_segments++] = (be_kv_segment){.k = (uint8_t *)p->k.data + data,
                                                     .v = (uint8_t *)p->v.data + data,
                                                     .k_scales = scales_from(&p->k, scales),
                                                     .v_scales = scales_from(&p->v, scales),
                                                     .first = first,
                                                     .end = end,
                                                     .window = window,
                                                     .q = q};
}

// The sinks, and the rest cut at up to two positions; where those are multiples of 64 the cuts do
// not show.
static void set_segments(problem *p, size_t cut0, size_t cut1) {
  shape s = p->s;
  size_t sinks = p->view.sinks < s.n_keys ? p->view.sinks : s.n_keys, begin = sinks;
  p->a = (be_attention){.out = p->out,
                        .stride = p->stride,
                        .n_tokens = s.n_tokens,
                        .n_heads = s.n_heads,
                        .head_dim = s.head_dim,
                        .position = s.n_keys - s.n_tokens,
                        .scale = 1.0f / sqrtf((float)s.head_dim),
                        .segments = p->segments};
  add_segment(p, 0, sinks, SIZE_MAX, p->sink_q);
  for (size_t i = 0; i < 2; i++) {
    size_t cut = i == 0 ? cut0 : cut1;
    cut = cut < begin ? begin : cut > s.n_keys ? s.n_keys : cut;
    add_segment(p, begin, cut, p->view.window, p->q);
    begin = cut;
  }
  add_segment(p, begin, s.n_keys, p->view.window, p->q);
}

// Buffers at guard pages, filled.
static void new_problem(problem *p, kc_fill fill, bool raw) {
  shape s = p->s;
  p->stride = s.n_heads * s.head_dim + kc_random_below(2) * 8;
  size_t floats = (s.n_tokens - 1) * p->stride + s.n_heads * s.head_dim;
  p->q = kc_buffer(floats * sizeof(float));
  p->sink_q = kc_buffer(floats * sizeof(float));
  p->out = kc_buffer(floats * sizeof(float));
  p->k.data = kc_buffer(s.n_keys * row_bytes(p->f, s.head_dim));
  p->v.data = kc_buffer(s.n_keys * row_bytes(p->f, s.head_dim));
  p->k.scales = kc_buffer(s.n_keys * scale_bytes(p->f, s.head_dim));
  p->v.scales = kc_buffer(s.n_keys * scale_bytes(p->f, s.head_dim));
  kc_fill_f32(p->q, floats, fill);
  kc_fill_f32(p->sink_q, floats, fill);
  fill_rows(p->k, p->f, s, fill);
  fill_rows(p->v, p->f, s, fill);
  if (raw) {
    fill_codes(p->k, p->f, s);
    fill_codes(p->v, p->f, s);
  }
}

static bool sees(const problem *p, size_t token, size_t j) {
  size_t position = p->s.n_keys - p->s.n_tokens + token;
  return j <= position && (j < p->view.sinks || position - j < p->view.window);
}

// Softmax in two passes and double precision: element d of head h of one token.
static double reference(const problem *p, size_t token, size_t h, size_t d) {
  double max = -INFINITY, sum = 0, out = 0;
  double *score = malloc(p->s.n_keys * sizeof *score);
  size_t at = token * p->stride + h * p->s.head_dim;
  for (size_t j = 0; j < p->s.n_keys; j++) {
    const float *q = (j < p->view.sinks ? p->sink_q : p->q) + at;
    score[j] = 0;
    for (size_t i = 0; i < p->s.head_dim; i++)
      score[j] += (double)q[i] * element(p->k, p->f, p->s.head_dim, j, i);
    score[j] *= (double)p->a.scale;
    if (sees(p, token, j))
      max = fmax(max, score[j]);
  }
  for (size_t j = 0; j < p->s.n_keys; j++)
    if (sees(p, token, j)) {
      double weight = exp(score[j] - max);
      sum += weight;
      out += weight * element(p->v, p->f, p->s.head_dim, j, d);
    }
  free(score);
  return out / sum;
}

static void expect_rows(const problem *p, const char *what, const float *expected) {
  for (size_t t = 0; t < p->s.n_tokens; t++)
    kc_expect_f32(what, expected + t * p->stride, p->out + t * p->stride,
                  p->s.n_heads * p->s.head_dim);
}

// int4 elements are exact floats, so that attention_i4 is attention_f32 over them, to the bit.
static void expect_float_attention(const problem *p) {
  static float expected[MAX_OUT];
  size_t head_dim = p->s.head_dim, size = p->s.n_keys * head_dim;
  float *k = malloc(2 * size * sizeof *k), *v = k + size;
  for (size_t j = 0; j < p->s.n_keys; j++)
    for (size_t d = 0; d < head_dim; d++) {
      k[j * head_dim + d] = (float)element(p->k, I4, head_dim, j, d);
      v[j * head_dim + d] = (float)element(p->v, I4, head_dim, j, d);
    }
  problem floats = *p;
  floats.f = F32;
  floats.out = expected;
  floats.k = (rows){k, NULL};
  floats.v = (rows){v, NULL};
  set_segments(&floats, 0, 0);
  attention_f32_scalar(&floats.a);
  free(k);
  expect_rows(p, "out", expected);
}

// Cuts at multiples of 64 and tokens one by one: the same bits.
static void expect_same_in_pieces(const problem *p, const float *expected) {
  problem pieces = *p;
  size_t blocks = p->s.n_keys / 64 + 1;
  size_t cut = kc_random_below(blocks) * 64;
  set_segments(&pieces, cut, cut + kc_random_below(blocks) * 64);
  be_kernels scalar;
  be_kernels_init(&scalar, 1u << BE_ISA_scalar);
  be_attention one = pieces.a;
  one.n_tokens = 1;
  for (size_t t = 0; t < p->s.n_tokens; t++) {
    be_kv_segment segments[MAX_SEGMENTS];
    memcpy(segments, pieces.segments, sizeof segments);
    for (size_t i = 0; i < pieces.a.n_segments; i++)
      segments[i].q += t * p->stride;
    one.segments = segments;
    one.out = p->out + t * p->stride;
    one.position = pieces.a.position + t;
    run(&scalar, p->f, &one);
  }
  expect_rows(p, "in pieces", expected);
}

static void check_case(const kc_variant *v, format f, shape s, view view, kc_fill fill, bool raw,
                       kc_edge edge) {
  static float expected[MAX_OUT];
  size_t cut0 = kc_random_below(s.n_keys + 1), cut1 = kc_random_below(s.n_keys + 1);
  bool cuts = kc_random() & 1; // often in the midst of a block
  kc_begin(edge,
           "heads=%zu tokens=%zu keys=%zu head_dim=%zu sinks=%zu window=%zu cuts=%d fill=%s%s",
           s.n_heads, s.n_tokens, s.n_keys, s.head_dim, view.sinks, view.window, cuts,
           kc_fill_name(fill), raw ? " any codes" : "");
  problem p = {.s = s, .f = f, .view = view};
  new_problem(&p, fill, raw);
  set_segments(&p, cuts ? cut0 : 0, cuts ? cut1 : 0);
  run(v->k, f, &p.a);
  if (v->isa != BE_ISA_scalar) {
    be_kernels scalar;
    be_kernels_init(&scalar, 1u << BE_ISA_scalar);
    be_attention truth = p.a;
    truth.out = expected;
    run(&scalar, f, &truth);
    expect_rows(&p, "out", expected);
  } else if (fill == KC_FILL_NORMAL) {
    for (size_t t = 0; t < s.n_tokens; t++) {
      size_t h = kc_random_below(s.n_heads), d = kc_random_below(s.head_dim);
      kc_expect_near("out", reference(&p, t, h, d),
                     (double)p.out[t * p.stride + h * s.head_dim + d], f == I4 ? 2e-5 : 4e-6);
    }
  }
  if (v->isa == BE_ISA_scalar && !cuts) {
    memcpy(expected, p.out, ((s.n_tokens - 1) * p.stride + s.n_heads * s.head_dim) * sizeof(float));
    expect_same_in_pieces(&p, expected);
    if (f == I4)
      expect_float_attention(&p);
  }
  kc_end();
}

static const view ALL = {0, SIZE_MAX};

static void check_attention(const kc_variant *v, format f) {
  const bool codes = f == I8 || f == I4;
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    KC_FOR_EDGES(edge) {
      for (size_t head_dim = 1; head_dim <= 130; head_dim += v->quick ? 3 : 1)
        check_case(v, f, (shape){1 + kc_random_below(2), 1, 1 + kc_random_below(9), head_dim}, ALL,
                   fill, codes && head_dim % 2, edge);
      for (size_t n_keys = 1; n_keys <= 130; n_keys += v->quick ? 5 : 1)
        check_case(v, f, (shape){1 + kc_random_below(9), 1, n_keys, 16 * (1 + n_keys % 6)}, ALL,
                   fill, codes && n_keys % 2, edge);
      // Tiles of tokens: every remainder of queries, ends of blocks within them, windows.
      for (size_t i = 0; i < (v->quick ? 12 : 60); i++) {
        shape s = {1 + kc_random_below(5), 1 + kc_random_below(40), 0, 16 * (1 + i % 5)};
        if (i % 4 == 0)
          s.head_dim -= 1 + kc_random_below(15);
        s.n_keys = s.n_tokens + kc_random_below(150);
        view w = {kc_random_below(10), 1 + kc_random_below(160)};
        check_case(v, f, s, i % 3 ? w : ALL, fill, false, edge);
      }
      check_case(v, f, (shape){64, 1, 70, 16}, ALL, fill, codes, edge);
      check_case(v, f, (shape){2, 1, 129, 512}, ALL, fill, false, edge);
      check_case(v, f, (shape){3, 5, 129, 512}, ALL, fill, false, edge);
      check_case(v, f, (shape){4, 1, v->quick ? 200 : 1500, 128}, ALL, fill, codes, edge);
      check_case(v, f, (shape){4, 17, v->quick ? 100 : 300, 128}, ALL, fill, codes, edge);
    }
}

void check_attention_f32(const kc_variant *v) { check_attention(v, F32); }
void check_attention_f16(const kc_variant *v) { check_attention(v, F16); }
void check_attention_i8(const kc_variant *v) { check_attention(v, I8); }
void check_attention_i4(const kc_variant *v) { check_attention(v, I4); }

// --- benchmark: groups of heads of the 2B model ------------------------------------------------

// `caches` of them in turn: one stays in the second-level cache, many come from memory.
static void bench_shape(const kc_variant *v, format f, shape s, const char *label, size_t caches) {
  size_t data = s.n_keys * row_bytes(f, s.head_dim), scales = s.n_keys * scale_bytes(f, s.head_dim);
  size_t floats = s.n_tokens * s.n_heads * s.head_dim, bytes = round_up(data + scales, 64);
  problem p = {.s = s, .f = f, .view = ALL, .stride = s.n_heads * s.head_dim};
  p.q = p.sink_q = kc_scratch(floats * sizeof(float));
  p.out = kc_scratch(floats * sizeof(float));
  uint8_t *memory = malloc(2 * caches * bytes); // keys and values of each
  if (!memory)
    exit(1);
  kc_fill_f32(p.q, floats, KC_FILL_NORMAL);
  fill_rows((rows){memory, memory + data}, f, s, KC_FILL_NORMAL);
  for (size_t i = 1; i < 2 * caches; i++)
    memcpy(memory + i * bytes, memory, data + scales);
  size_t seen = s.n_tokens * (2 * s.n_keys - s.n_tokens + 1) / 2;
  double macs = 2.0 * (double)(s.n_heads * seen * s.head_dim);
  size_t next = 0;
  for (kc_timer timer = kc_timer_begin(v, label, 2.0 * (double)(data + scales), macs);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++) {
      uint8_t *k = memory + 2 * next * bytes, *values = k + bytes;
      p.k = (rows){k, k + data};
      p.v = (rows){values, values + data};
      set_segments(&p, 0, 0);
      run(v->k, f, &p.a);
      next = (next + 1) % caches;
    }
  free(memory);
}

static void bench_attention(const kc_variant *v, format f) {
  bench_shape(v, f, (shape){4, 1, 1024, 128}, "heads=4 keys=1024 dim=128", 1);
  bench_shape(v, f, (shape){1, 1, 1024, 128}, "heads=1 keys=1024 dim=128", 1);
  bench_shape(v, f, (shape){4, 8, 512, 128}, "the same, 8 tokens keys=512", 1);
  if (!v->quick) // enough of them to exceed any cache
    bench_shape(v, f, (shape){4, 1, 1024, 128}, "heads=4 ... (DRAM)", f < I8 ? 64 : 400);
}

void bench_attention_f32(const kc_variant *v) { bench_attention(v, F32); }
void bench_attention_f16(const kc_variant *v) { bench_attention(v, F16); }
void bench_attention_i8(const kc_variant *v) { bench_attention(v, I8); }
void bench_attention_i4(const kc_variant *v) { bench_attention(v, I4); }
