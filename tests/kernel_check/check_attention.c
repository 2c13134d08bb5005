// SPDX-License-Identifier: MIT
// attention_f32 and attention_f16.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

typedef struct shape {
  size_t n_heads, n_keys, head_dim;
} shape;

static void run(const be_kernels *k, bool half, float *out, const float *q, const void *keys,
                const void *values, shape s, float scale) {
  if (half)
    k->attention_f16(out, q, keys, values, s.n_heads, s.n_keys, s.head_dim, scale);
  else
    k->attention_f32(out, q, keys, values, s.n_heads, s.n_keys, s.head_dim, scale);
}

// Softmax in two passes and double precision, element d of head h.
static double reference(const float *q, const float *k, const float *v, shape s, size_t h, size_t d,
                        double scale) {
  double max = -INFINITY, sum = 0, out = 0;
  double *score = malloc(s.n_keys * sizeof *score);
  for (size_t j = 0; j < s.n_keys; j++) {
    score[j] = 0;
    for (size_t i = 0; i < s.head_dim; i++)
      score[j] += (double)q[h * s.head_dim + i] * (double)k[j * s.head_dim + i];
    score[j] *= scale;
    max = fmax(max, score[j]);
  }
  for (size_t j = 0; j < s.n_keys; j++) {
    double p = exp(score[j] - max);
    sum += p;
    out += p * (double)v[j * s.head_dim + d];
  }
  free(score);
  return out / sum;
}

enum { MAX_OUT = 64 * 512, MAX_CACHE = 1 << 18 };

static void check_case(const kc_variant *v, bool half, shape s, kc_fill fill, kc_edge edge) {
  static float wide_k[MAX_CACHE], wide_v[MAX_CACHE], expected[MAX_OUT];
  const be_kernels *kernels = v->k;
  size_t cache = s.n_keys * s.head_dim, size = half ? 2 : 4;
  float scale = 1.0f / sqrtf((float)s.head_dim);
  kc_begin(edge, "heads=%zu keys=%zu head_dim=%zu fill=%s", s.n_heads, s.n_keys, s.head_dim,
           kc_fill_name(fill));
  float *q = kc_buffer(s.n_heads * s.head_dim * sizeof *q);
  void *k = kc_buffer(cache * size), *values = kc_buffer(cache * size);
  float *out = kc_buffer(s.n_heads * s.head_dim * sizeof *out);
  kc_fill_f32(q, s.n_heads * s.head_dim, fill);
  kc_fill_f32(wide_k, cache, fill);
  kc_fill_f32(wide_v, cache, fill);
  if (half) {
    f32_to_f16_scalar(k, wide_k, cache);
    f32_to_f16_scalar(values, wide_v, cache);
    f16_to_f32_scalar(wide_k, k, cache);
    f16_to_f32_scalar(wide_v, values, cache);
  } else {
    memcpy(k, wide_k, cache * size);
    memcpy(values, wide_v, cache * size);
  }
  run(kernels, half, out, q, k, values, s, scale);
  if (v->isa == BE_ISA_scalar && fill == KC_FILL_NORMAL) {
    for (size_t h = 0; h < s.n_heads; h++) {
      size_t d = kc_random_below(s.head_dim);
      kc_expect_near("out", reference(q, wide_k, wide_v, s, h, d, (double)scale),
                     (double)out[h * s.head_dim + d], 4e-6);
    }
  } else {
    be_kernels scalar;
    be_kernels_init(&scalar, 1u << BE_ISA_scalar);
    run(&scalar, half, expected, q, k, values, s, scale);
    kc_expect_f32("out", expected, out, s.n_heads * s.head_dim);
  }
  kc_end();
}

static void check_attention(const kc_variant *v, bool half) {
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    KC_FOR_EDGES(edge) {
      for (size_t head_dim = 1; head_dim <= 130; head_dim += v->quick ? 3 : 1)
        check_case(v, half, (shape){1 + kc_random_below(2), 1 + kc_random_below(9), head_dim}, fill,
                   edge);
      for (size_t n_keys = 1; n_keys <= 130; n_keys += v->quick ? 5 : 1)
        check_case(v, half, (shape){1 + kc_random_below(3), n_keys, 16 * (1 + n_keys % 6)}, fill,
                   edge);
      check_case(v, half, (shape){64, 70, 16}, fill, edge);
      check_case(v, half, (shape){2, 129, 512}, fill, edge);
      check_case(v, half, (shape){4, v->quick ? 200 : 1500, 128}, fill, edge);
    }
}

void check_attention_f32(const kc_variant *v) { check_attention(v, false); }
void check_attention_f16(const kc_variant *v) { check_attention(v, true); }

// --- benchmark: a group of four heads of the 2B model ------------------------------------------

// `caches` of them in turn: one stays in the second-level cache, many come from memory.
static void bench_shape(const kc_variant *v, bool half, const char *label, size_t caches) {
  const shape s = {4, 1024, 128};
  const float scale = 0.0883883f;
  size_t elements = s.n_keys * s.head_dim, bytes = elements * (half ? 2 : 4);
  float *q = kc_scratch(s.n_heads * s.head_dim * sizeof *q);
  float *out = kc_scratch(s.n_heads * s.head_dim * sizeof *out);
  float *wide = kc_scratch(elements * sizeof *wide);
  uint8_t *cache = malloc(2 * caches * bytes); // keys and values of each
  if (!cache)
    exit(1);
  kc_fill_f32(q, s.n_heads * s.head_dim, KC_FILL_NORMAL);
  kc_fill_f32(wide, elements, KC_FILL_NORMAL);
  for (size_t i = 0; i < 2 * caches; i++) {
    if (half)
      f32_to_f16_scalar((uint16_t *)(void *)(cache + i * bytes), wide, elements);
    else
      memcpy(cache + i * bytes, wide, bytes);
  }
  double macs = 2.0 * (double)(s.n_heads * elements);
  size_t next = 0;
  for (kc_timer timer = kc_timer_begin(v, label, 2.0 * (double)bytes, macs); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++) {
      run(v->k, half, out, q, cache + 2 * next * bytes, cache + (2 * next + 1) * bytes, s, scale);
      next = (next + 1) % caches;
    }
  free(cache);
}

static void bench_attention(const kc_variant *v, bool half) {
  bench_shape(v, half, "heads=4 keys=1024 dim=128", 1);
  if (!v->quick)
    bench_shape(v, half, "the same x64 (DRAM)", 64);
}

void bench_attention_f32(const kc_variant *v) { bench_attention(v, false); }
void bench_attention_f16(const kc_variant *v) { bench_attention(v, true); }
