// SPDX-License-Identifier: MIT
// quantize_kv_i4, attention_i8 and attention_i4.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

static size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// --- quantize_kv_i4 ----------------------------------------------------------------------------

static float bf16_value(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

// Independent of the kernel: rounding by frexp and nearbyint in double precision.
static void expect_group(const uint8_t *codes, uint16_t scale, const float *x, size_t n) {
  double extreme = 0;
  for (size_t i = 0; i < n; i++) // the positive one of two equals
    if (fabs((double)x[i]) > fabs(extreme) || (fabs((double)x[i]) == fabs(extreme) && x[i] > 0))
      extreme = (double)x[i];
  double magnitude = fmax(fabs(extreme), (double)1e-30f);
  int exponent = 0;
  double fraction = isinf(magnitude) ? magnitude : frexp(magnitude / 8, &exponent);
  double expected = ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
  expected = extreme < 0 ? expected : -expected;
  float s = (float)expected;
  if (s != bf16_value(scale))
    kc_fail("scale: expected %a, got %a", expected, (double)bf16_value(scale));
  for (size_t i = 0; i < 32; i++) {
    double v = i < n ? nearbyint((double)(x[i] * (1.0f / s))) : 0;
    int code = isnan(v) ? 0 : v > 7 ? 7 : v < -8 ? -8 : (int)v;
    int got = (codes[i % 16] >> (i < 16 ? 0 : 4) & 15) - 8;
    if (code != got)
      kc_fail("code[%zu]: expected %d, got %d for %a", i, code, got, i < n ? (double)x[i] : 0.0);
  }
}

// Values at rounding ties: the extreme -8 gives scale 1.
static void fill_ties(float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    x[i] = i % 32 == 7 ? -8.0f : (float)kc_random_below(16) - 7.5f;
}

static void check_quantize_case(const kc_variant *v, size_t n, int fill) {
  KC_FOR_EDGES(edge) {
    kc_begin(edge, "n=%zu fill=%s", n, fill < KC_FILL_COUNT ? kc_fill_name(fill) : "ties");
    size_t groups = (n + 31) / 32;
    float *x = kc_buffer(n * sizeof *x);
    uint8_t *codes = kc_buffer(groups * 16);
    uint16_t *scales = kc_buffer(groups * sizeof *scales);
    if (fill < KC_FILL_COUNT)
      kc_fill_f32(x, n, fill);
    else
      fill_ties(x, n);
    v->k->quantize_kv_i4(codes, scales, x, n);
    if (v->isa == BE_ISA_scalar) {
      for (size_t g = 0; g < groups; g++)
        expect_group(codes + g * 16, scales[g], x + g * 32, n - g * 32 < 32 ? n - g * 32 : 32);
    } else {
      static uint8_t expected_codes[BE_MAX_HEAD_DIM / 2];
      static uint16_t expected_scales[BE_MAX_HEAD_DIM / 32];
      quantize_kv_i4_scalar(expected_codes, expected_scales, x, n);
      kc_expect_u16("scales", expected_scales, scales, groups);
      kc_expect_i8("codes", (int8_t *)expected_codes, (int8_t *)codes, groups * 16);
    }
    kc_end();
  }
}

void check_quantize_kv_i4(const kc_variant *v) {
  for (int fill = 0; fill <= KC_FILL_COUNT; fill++) {
    for (size_t n = 1; n <= 130; n++)
      check_quantize_case(v, n, fill);
    check_quantize_case(v, BE_MAX_HEAD_DIM, fill);
  }
}

void bench_quantize_kv_i4(const kc_variant *v) {
  static float x[128];
  static uint8_t codes[64];
  static uint16_t scales[4];
  kc_fill_f32(x, 128, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "head_dim=128", 128 * 4.0 + 72, 128);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->quantize_kv_i4(codes, scales, x, 128);
}

// --- attention ---------------------------------------------------------------------------------

typedef struct shape {
  size_t n_heads, n_keys, head_dim;
} shape;

typedef struct cache {
  void *codes, *scales;
} cache;

static size_t row_bytes(bool wide, size_t head_dim) {
  return wide ? round_up(head_dim, 16) : round_up(head_dim, 32) / 2;
}

// Scales take 4 bytes a row, or 2 a group.
static size_t row_scale_bytes(bool wide, size_t head_dim) {
  return wide ? 4 : round_up(head_dim, 32) / 16;
}

static void run(const be_kernels *k, bool wide, float *out, const float *q, cache keys,
                cache values, shape s, float scale) {
  if (wide)
    k->attention_i8(out, q, keys.codes, keys.scales, values.codes, values.scales, s.n_heads,
                    s.n_keys, s.head_dim, scale);
  else
    k->attention_i4(out, q, keys.codes, keys.scales, values.codes, values.scales, s.n_heads,
                    s.n_keys, s.head_dim, scale);
}

// Rows as an append would write them.
static void fill_rows(cache c, bool wide, shape s, kc_fill fill) {
  float x[BE_MAX_HEAD_DIM], inverse;
  int32_t sum;
  for (size_t j = 0; j < s.n_keys; j++) {
    uint8_t *codes = (uint8_t *)c.codes + j * row_bytes(wide, s.head_dim);
    kc_fill_f32(x, s.head_dim, fill);
    if (wide) {
      quantize_i8_scalar((int8_t *)codes, &inverse, &sum, x, s.head_dim);
      ((float *)c.scales)[j] = 1.0f / inverse;
    } else {
      uint16_t *scales = (uint16_t *)c.scales + j * (round_up(s.head_dim, 32) / 32);
      quantize_kv_i4_scalar(codes, scales, x, s.head_dim);
    }
  }
}

// Any code under the scales that are there, also those that no append writes (-128). Padding stays,
// and so do the zeros that an append writes under an infinite scale.
static void fill_codes(cache c, bool wide, shape s) {
  size_t size = row_bytes(wide, s.head_dim), groups = round_up(s.head_dim, 32) / 32;
  for (size_t j = 0; j < s.n_keys; j++) {
    uint8_t *row = (uint8_t *)c.codes + j * size;
    for (size_t d = 0; d < s.head_dim; d++) {
      uint8_t code = kc_random() & 1 ? (uint8_t)kc_random() : 0x80;
      if (wide)
        row[d] = code;
      else if (isfinite(bf16_value(((uint16_t *)c.scales)[j * groups + d / 32]))) {
        uint8_t *byte = row + d / 32 * 16 + d % 16;
        *byte = d % 32 < 16 ? (*byte & 0xf0) | code >> 4 : (*byte & 0x0f) | (code & 0xf0);
      }
    }
  }
}

static double element(cache c, bool wide, size_t head_dim, size_t j, size_t d) {
  const uint8_t *row = (uint8_t *)c.codes + j * row_bytes(wide, head_dim);
  if (wide)
    return (double)(int8_t)row[d] * (double)((float *)c.scales)[j];
  int code = (row[d / 32 * 16 + d % 16] >> (d % 32 < 16 ? 0 : 4) & 15) - 8;
  return code *
         (double)bf16_value(((uint16_t *)c.scales)[j * (round_up(head_dim, 32) / 32) + d / 32]);
}

// Softmax in two passes and double precision, element d of head h.
static double reference(const float *q, cache k, cache v, bool wide, shape s, size_t h, size_t d,
                        double scale) {
  double max = -INFINITY, sum = 0, out = 0;
  double *score = malloc(s.n_keys * sizeof *score);
  for (size_t j = 0; j < s.n_keys; j++) {
    score[j] = 0;
    for (size_t i = 0; i < s.head_dim; i++)
      score[j] += (double)q[h * s.head_dim + i] * element(k, wide, s.head_dim, j, i);
    score[j] *= scale;
    max = fmax(max, score[j]);
  }
  for (size_t j = 0; j < s.n_keys; j++) {
    double p = exp(score[j] - max);
    sum += p;
    out += p * element(v, wide, s.head_dim, j, d);
  }
  free(score);
  return out / sum;
}

enum { MAX_OUT = 64 * 512, MAX_CACHE = 1 << 18 };

// int4 elements are exact floats, so that attention_i4 is attention_f32 over them, to the bit.
static void expect_float_attention(const float *out, const float *q, cache k, cache v, shape s,
                                   float scale) {
  static float wide_k[MAX_CACHE], wide_v[MAX_CACHE], expected[MAX_OUT];
  for (size_t j = 0; j < s.n_keys; j++)
    for (size_t d = 0; d < s.head_dim; d++) {
      wide_k[j * s.head_dim + d] = (float)element(k, false, s.head_dim, j, d);
      wide_v[j * s.head_dim + d] = (float)element(v, false, s.head_dim, j, d);
    }
  attention_f32_scalar(expected, q, wide_k, wide_v, s.n_heads, s.n_keys, s.head_dim, scale);
  kc_expect_f32("out", expected, out, s.n_heads * s.head_dim);
}

static void check_case(const kc_variant *v, bool wide, shape s, kc_fill fill, bool raw,
                       kc_edge edge) {
  static float expected[MAX_OUT];
  float scale = 1.0f / sqrtf((float)s.head_dim);
  kc_begin(edge, "heads=%zu keys=%zu head_dim=%zu fill=%s%s", s.n_heads, s.n_keys, s.head_dim,
           kc_fill_name(fill), raw ? " any codes" : "");
  float *q = kc_buffer(s.n_heads * s.head_dim * sizeof *q);
  cache k, values;
  k.codes = kc_buffer(s.n_keys * row_bytes(wide, s.head_dim));
  k.scales = kc_buffer(s.n_keys * row_scale_bytes(wide, s.head_dim));
  values.codes = kc_buffer(s.n_keys * row_bytes(wide, s.head_dim));
  values.scales = kc_buffer(s.n_keys * row_scale_bytes(wide, s.head_dim));
  float *out = kc_buffer(s.n_heads * s.head_dim * sizeof *out);
  kc_fill_f32(q, s.n_heads * s.head_dim, fill);
  fill_rows(k, wide, s, fill);
  fill_rows(values, wide, s, fill);
  if (raw) {
    fill_codes(k, wide, s);
    fill_codes(values, wide, s);
  }
  run(v->k, wide, out, q, k, values, s, scale);
  if (v->isa != BE_ISA_scalar) {
    be_kernels scalar;
    be_kernels_init(&scalar, 1u << BE_ISA_scalar);
    run(&scalar, wide, expected, q, k, values, s, scale);
    kc_expect_f32("out", expected, out, s.n_heads * s.head_dim);
  } else if (!wide) {
    expect_float_attention(out, q, k, values, s, scale);
  } else if (fill == KC_FILL_NORMAL) {
    for (size_t h = 0; h < s.n_heads; h++) {
      size_t d = kc_random_below(s.head_dim);
      kc_expect_near("out", reference(q, k, values, wide, s, h, d, (double)scale),
                     (double)out[h * s.head_dim + d], 8e-6);
    }
  }
  kc_end();
}

static void check_attention(const kc_variant *v, bool wide) {
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    KC_FOR_EDGES(edge) {
      bool raw = kc_random() & 1;
      for (size_t head_dim = 1; head_dim <= 130; head_dim += v->quick ? 3 : 1, raw = !raw)
        check_case(v, wide, (shape){1 + kc_random_below(5), 1 + kc_random_below(9), head_dim}, fill,
                   raw, edge);
      for (size_t n_keys = 1; n_keys <= 130; n_keys += v->quick ? 5 : 1, raw = !raw)
        check_case(v, wide, (shape){1 + kc_random_below(5), n_keys, 16 * (1 + n_keys % 6)}, fill,
                   raw, edge);
      check_case(v, wide, (shape){64, 70, 16}, fill, raw, edge);
      check_case(v, wide, (shape){2, 129, 512}, fill, raw, edge);
      check_case(v, wide, (shape){7, 67, 511}, fill, raw, edge);
      check_case(v, wide, (shape){4, v->quick ? 200 : 1500, 128}, fill, raw, edge);
    }
}

void check_attention_i8(const kc_variant *v) { check_attention(v, true); }
void check_attention_i4(const kc_variant *v) { check_attention(v, false); }

// --- benchmark: a group of four heads of the 2B model, and one head ----------------------------

// `caches` of them in turn: one stays in the second-level cache, many come from memory.
static void bench_shape(const kc_variant *v, bool wide, shape s, const char *label, size_t caches) {
  const size_t bytes = s.n_keys * row_bytes(wide, s.head_dim);
  const size_t scale_bytes = s.n_keys * row_scale_bytes(wide, s.head_dim);
  float *q = kc_scratch(s.n_heads * s.head_dim * sizeof *q);
  float *out = kc_scratch(s.n_heads * s.head_dim * sizeof *out);
  uint8_t *memory = malloc(2 * caches * (bytes + scale_bytes)); // keys and values of each
  if (!memory)
    exit(1);
  kc_fill_f32(q, s.n_heads * s.head_dim, KC_FILL_NORMAL);
  for (size_t i = 0; i < 2 * caches; i++) {
    uint8_t *at = memory + i * (bytes + scale_bytes);
    if (i == 0)
      fill_rows((cache){at, at + bytes}, wide, s, KC_FILL_NORMAL);
    else
      memcpy(at, memory, bytes + scale_bytes);
  }
  double macs = 2.0 * (double)(s.n_heads * s.n_keys * s.head_dim);
  size_t next = 0;
  for (kc_timer timer = kc_timer_begin(v, label, 2.0 * (double)(bytes + scale_bytes), macs);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++) {
      uint8_t *k = memory + 2 * next * (bytes + scale_bytes), *values = k + bytes + scale_bytes;
      run(v->k, wide, out, q, (cache){k, k + bytes}, (cache){values, values + bytes}, s,
          0.0883883f);
      next = (next + 1) % caches;
    }
  free(memory);
}

static void bench_attention(const kc_variant *v, bool wide) {
  bench_shape(v, wide, (shape){4, 1024, 128}, "heads=4 keys=1024 dim=128", 1);
  bench_shape(v, wide, (shape){1, 1024, 128}, "heads=1 keys=1024 dim=128", 1);
  if (!v->quick) // enough of them to exceed any cache
    bench_shape(v, wide, (shape){4, 1024, 128}, "heads=4 ... (DRAM)", 400);
}

void bench_attention_i8(const kc_variant *v) { bench_attention(v, true); }
void bench_attention_i4(const kc_variant *v) { bench_attention(v, false); }
