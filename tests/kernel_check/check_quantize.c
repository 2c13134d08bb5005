// SPDX-License-Identifier: MIT
// quantize_i8 and rms_norm_quantize_i8.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

typedef struct row { // one result
  int8_t *q;
  float *s;
  int32_t *q_sum;
} row;

static row guarded_row(size_t n) {
  size_t padded = (n + 15) / 16 * 16;
  return (row){kc_buffer(padded), kc_buffer(sizeof(float)), kc_buffer(sizeof(int32_t))};
}

// Independent of the kernels: rounding by nearbyint in double precision, where x * s is exact.
static void expect_quantized(const row *actual, const float *x, size_t n) {
  double m = 1e-5f;
  for (size_t i = 0; i < n; i++)
    m = fabs((double)x[i]) > m ? fabs((double)x[i]) : m;
  float s = (float)(127.0 / m); // double rounding is harmless: 53 >= 2 * 24 + 2 bits
  kc_expect_f32("s", &s, actual->s, 1);
  int32_t sum = 0;
  for (size_t i = 0; i < n; i++) {
    double v = nearbyint((double)(float)((double)x[i] * (double)s));
    int expected = isnan(v) ? 0 : v > 127 ? 127 : v < -128 ? -128 : (int)v;
    if (expected != actual->q[i])
      kc_fail("q[%zu]: expected %d, got %d for %a", i, expected, actual->q[i], (double)x[i]);
    sum += expected;
  }
  kc_expect_i32("q_sum", &sum, actual->q_sum, 1);
  for (size_t i = n; i % 16 != 0; i++)
    if (actual->q[i] != 0)
      kc_fail("padding q[%zu] is not zero", i);
}

static void expect_same(const row *expected, const row *actual, size_t n) {
  kc_expect_f32("s", expected->s, actual->s, 1);
  kc_expect_i8("q", expected->q, actual->q, (n + 15) / 16 * 16);
  kc_expect_i32("q_sum", expected->q_sum, actual->q_sum, 1);
}

static row scratch_row(size_t n) {
  return (row){kc_scratch(n + 16), kc_scratch(sizeof(float)), kc_scratch(sizeof(int32_t))};
}

// Values whose product with s lies at a rounding tie: absmax 127 gives s = 1.
static void fill_ties(float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    x[i] = (float)kc_random_below(254) - 126.5f;
  if (n > 0)
    x[kc_random_below(n)] = kc_random() & 1 ? 127.0f : -127.0f;
}

static void check_quantize_case(const kc_variant *v, size_t n, int fill, const row *expected) {
  KC_FOR_EDGES(edge) {
    kc_begin(edge, "n=%zu fill=%s", n, fill < KC_FILL_COUNT ? kc_fill_name(fill) : "ties");
    float *x = kc_buffer(n * sizeof *x);
    row actual = guarded_row(n);
    if (fill < KC_FILL_COUNT)
      kc_fill_f32(x, n, fill);
    else
      fill_ties(x, n);
    v->k->quantize_i8(actual.q, actual.s, actual.q_sum, x, n);
    if (v->isa == BE_ISA_scalar) {
      expect_quantized(&actual, x, n);
    } else {
      quantize_i8_scalar(expected->q, expected->s, expected->q_sum, x, n);
      expect_same(expected, &actual, n);
    }
    kc_end();
  }
}

void check_quantize_i8(const kc_variant *v) {
  row expected = scratch_row(8192);
  for (int fill = 0; fill <= KC_FILL_COUNT; fill++) {
    for (size_t n = 0; n <= 130; n++)
      check_quantize_case(v, n, fill, &expected);
    check_quantize_case(v, 6912, fill, &expected);
    check_quantize_case(v, 2561 + kc_random_below(1000), fill, &expected);
  }
}

// The fused kernel equals the two kernels one after the other; the scalar rms_norm_f32 has its
// own independent check.
static void check_fused_case(const kc_variant *v, size_t n, kc_fill fill, const row *expected,
                             float *normalized) {
  KC_FOR_EDGES(edge) {
    kc_begin(edge, "n=%zu fill=%s", n, kc_fill_name(fill));
    float *x = kc_buffer(n * sizeof *x), *gain = kc_buffer(n * sizeof *gain);
    row actual = guarded_row(n);
    kc_fill_f32(x, n, fill);
    kc_fill_f32(gain, n, fill == KC_FILL_SPECIAL ? KC_FILL_SPECIAL : KC_FILL_NORMAL);
    float eps = kc_random() & 1 ? 1e-5f : 0.0f;
    v->k->rms_norm_quantize_i8(actual.q, actual.s, actual.q_sum, x, gain, n, eps);
    rms_norm_f32_scalar(normalized, x, gain, n, eps);
    quantize_i8_scalar(expected->q, expected->s, expected->q_sum, normalized, n);
    expect_same(expected, &actual, n);
    kc_end();
  }
}

void check_rms_norm_quantize_i8(const kc_variant *v) {
  row expected = scratch_row(8192);
  float *normalized = kc_scratch(8192 * sizeof *normalized);
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++) {
    for (size_t n = 0; n <= 130; n++)
      check_fused_case(v, n, fill, &expected, normalized);
    check_fused_case(v, 2560, fill, &expected, normalized);
    check_fused_case(v, 2561 + kc_random_below(1000), fill, &expected, normalized);
  }
}

void bench_quantize_i8(const kc_variant *v) {
  enum { N = 6912 };
  static float x[N];
  static int8_t q[N];
  float s;
  int32_t q_sum;
  kc_fill_f32(x, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=6912", N * 5.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->quantize_i8(q, &s, &q_sum, x, N);
}

void bench_rms_norm_quantize_i8(const kc_variant *v) {
  enum { N = 2560 };
  static float x[N], gain[N];
  static int8_t q[N];
  float s;
  int32_t q_sum;
  kc_fill_f32(x, N, KC_FILL_NORMAL);
  kc_fill_f32(gain, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 9.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->rms_norm_quantize_i8(q, &s, &q_sum, x, gain, N, 1e-5f);
}
