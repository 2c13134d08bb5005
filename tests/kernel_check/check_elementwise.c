// SPDX-License-Identifier: MIT
// Kernels that map elements: dequantize_f32, scale_add_f32, rms_norm_f32, add_f32, relu2_mul_f32,
// silu_mul_f32, exp_f32, rope_f32. Every n from 0 to 130 and some larger, all fills, also in place.
#include <math.h>
#include <string.h>

#include "kernel_check.h"

enum { MAX_N = 4096 };

// Sizes 0 .. 130, a model's width, and a ragged one.
static size_t size_at(size_t i) {
  return i <= 130 ? i : i == 131 ? 2560 : 2561 + kc_random_below(1000);
}
enum { SIZES = 133 };

static void check_dequantize_case(const kc_variant *v, size_t n, bool with_bias, kc_edge edge) {
  static float expected[MAX_N];
  kc_begin(edge, "n=%zu bias=%d", n, with_bias);
  int32_t *acc = kc_buffer(n * sizeof *acc);
  float *bias = kc_buffer(n * sizeof *bias), *y = kc_buffer(n * sizeof *y), constant[2];
  for (size_t i = 0; i < n; i++)
    acc[i] = (int32_t)kc_random() >> kc_random_below(32);
  kc_fill_f32(bias, n, KC_FILL_NORMAL);
  kc_fill_f32(constant, 2, KC_FILL_WIDE);
  float s = n % 10 == 3 ? 0.0f : fabsf(constant[0]), w_scale = constant[1];
  v->k->dequantize_f32(y, acc, n, s, w_scale, with_bias ? bias : NULL);
  if (v->isa == BE_ISA_scalar) {
    for (size_t i = 0; i < n; i++) {
      double value = (double)(float)((double)(float)acc[i] / (double)s) * (double)w_scale;
      expected[i] = with_bias ? (float)((double)(float)value + (double)bias[i]) : (float)value;
    }
  } else {
    dequantize_f32_scalar(expected, acc, n, s, w_scale, with_bias ? bias : NULL);
  }
  kc_expect_f32("y", expected, y, n);
  kc_end();
}

void check_dequantize_f32(const kc_variant *v) {
  for (size_t i = 0; i < SIZES; i++)
    KC_FOR_EDGES(edge) {
      check_dequantize_case(v, size_at(i), false, edge);
      check_dequantize_case(v, size_at(i), true, edge);
    }
}

static void check_scale_add_case(const kc_variant *v, size_t n, kc_edge edge) {
  static float expected[MAX_N];
  kc_begin(edge, "n=%zu", n);
  int32_t *acc = kc_buffer(n * sizeof *acc);
  float *scale = kc_buffer(n * sizeof *scale), *y = kc_buffer(n * sizeof *y);
  for (size_t i = 0; i < n; i++)
    acc[i] = (int32_t)kc_random() >> kc_random_below(32);
  kc_fill_f32(scale, n, KC_FILL_WIDE);
  kc_fill_f32(y, n, KC_FILL_WIDE);
  for (size_t i = 0; i < n; i++) {
    double product = (double)(float)((double)(float)acc[i] * (double)scale[i]);
    expected[i] = (float)((double)y[i] + product);
  }
  v->k->scale_add_f32(y, acc, scale, n);
  kc_expect_f32("y", expected, y, n);
  kc_end();
}

void check_scale_add_f32(const kc_variant *v) {
  for (size_t i = 0; i < SIZES; i++)
    KC_FOR_EDGES(edge)
  check_scale_add_case(v, size_at(i), edge);
}

static void check_rms_norm_case(const kc_variant *v, size_t n, kc_fill fill, bool in_place,
                                kc_edge edge) {
  static float expected[MAX_N];
  kc_begin(edge, "n=%zu fill=%s in_place=%d", n, kc_fill_name(fill), in_place);
  float *x = kc_buffer(n * sizeof *x), *gain = kc_buffer(n * sizeof *gain);
  float *y = in_place ? x : kc_buffer(n * sizeof *y), eps = kc_random() & 1 ? 1e-5f : 0.0f;
  kc_fill_f32(x, n, fill);
  kc_fill_f32(gain, n, fill == KC_FILL_SPECIAL ? fill : KC_FILL_NORMAL);
  if (v->isa == BE_ISA_scalar && fill == KC_FILL_NORMAL) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
      sum += (double)x[i] * (double)x[i];
    double r = 1 / sqrt(sum / (double)n + (double)eps);
    for (size_t i = 0; i < n; i++)
      expected[i] = (float)((double)x[i] * r * (double)gain[i]);
    v->k->rms_norm_f32(y, x, gain, n, eps);
    for (size_t i = 0; i < n; i++)
      kc_expect_near("y", (double)expected[i], (double)y[i], 1e-6 * fabs((double)expected[i]));
  } else {
    rms_norm_f32_scalar(expected, x, gain, n, eps);
    v->k->rms_norm_f32(y, x, gain, n, eps);
    kc_expect_f32("y", expected, y, n);
  }
  kc_end();
}

void check_rms_norm_f32(const kc_variant *v) {
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    for (size_t i = 0; i < SIZES; i++)
      KC_FOR_EDGES(edge) {
        check_rms_norm_case(v, size_at(i), fill, false, edge);
        check_rms_norm_case(v, size_at(i), fill, true, edge);
      }
}

// Kernels of two inputs; `reference` is the truth in double precision, good to `bound` relative.
typedef void binary_kernel(float *y, const float *a, const float *b, size_t n);
typedef double binary_reference(double a, double b);

static void check_binary_case(const kc_variant *v, binary_kernel *kernel, binary_kernel *scalar,
                              binary_reference *reference, double bound, size_t n, kc_fill fill,
                              int in_place, kc_edge edge) {
  static float expected[MAX_N];
  kc_begin(edge, "n=%zu fill=%s in_place=%d", n, kc_fill_name(fill), in_place);
  float *a = kc_buffer(n * sizeof *a), *b = kc_buffer(n * sizeof *b);
  float *y = in_place == 0 ? kc_buffer(n * sizeof *y) : in_place == 1 ? a : b;
  kc_fill_f32(a, n, fill);
  kc_fill_f32(b, n, fill);
  if (v->isa == BE_ISA_scalar && fill == KC_FILL_NORMAL) {
    for (size_t i = 0; i < n; i++)
      expected[i] = (float)reference((double)a[i], (double)b[i]);
    kernel(y, a, b, n);
    for (size_t i = 0; i < n; i++)
      kc_expect_near("y", (double)expected[i], (double)y[i], bound * fabs((double)expected[i]));
  } else {
    scalar(expected, a, b, n);
    kernel(y, a, b, n);
    kc_expect_f32("y", expected, y, n);
  }
  kc_end();
}

static void check_binary(const kc_variant *v, binary_kernel *kernel, binary_kernel *scalar,
                         binary_reference *reference, double bound) {
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    for (size_t i = 0; i < SIZES; i++)
      for (int in_place = 0; in_place < 3; in_place++)
        KC_FOR_EDGES(edge)
  check_binary_case(v, kernel, scalar, reference, bound, size_at(i), fill, in_place, edge);
}

static double add(double a, double b) { return a + b; }
static double relu2_mul(double g, double u) { return fmax(g, 0) * fmax(g, 0) * u; }
static double silu_mul(double g, double u) { return g / (1 + exp(-g)) * u; }

void check_add_f32(const kc_variant *v) { check_binary(v, v->k->add_f32, add_f32_scalar, add, 0); }

void check_relu2_mul_f32(const kc_variant *v) {
  check_binary(v, v->k->relu2_mul_f32, relu2_mul_f32_scalar, relu2_mul, 2e-7);
}

void check_silu_mul_f32(const kc_variant *v) {
  check_binary(v, v->k->silu_mul_f32, silu_mul_f32_scalar, silu_mul, 5e-7);
}

// Distance in units of the last place of the correctly rounded value.
static double ulps(float actual, double truth) {
  float nearest = (float)truth;
  if (isinf(nearest) || isnan(nearest))
    return actual == nearest || (isnan(actual) && isnan(nearest)) ? 0 : 1e9;
  double unit = ldexp(1, ilogb((double)nearest) - 23);
  return fabs((double)actual - (double)nearest) / unit;
}

static void expect_exp(const float *x, const float *y, size_t n) {
  for (size_t i = 0; i < n; i++) {
    double truth = exp((double)x[i]);
    if (x[i] < -87.3f)
      truth = 0; // by definition
    if (truth == 0 ? y[i] != 0 || signbit(y[i]) : ulps(y[i], truth) > 1)
      kc_fail("exp(%a) = %a is %.2f ULP off", (double)x[i], (double)y[i], ulps(y[i], truth));
  }
}

static void check_exp_case(const kc_variant *v, const float *values, size_t n, const char *what,
                           bool in_place, kc_edge edge) {
  static float expected[MAX_N];
  kc_begin(edge, "n=%zu fill=%s in_place=%d", n, what, in_place);
  float *x = kc_buffer(n * sizeof *x), *y = in_place ? x : kc_buffer(n * sizeof *y);
  memcpy(x, values, n * sizeof *x);
  v->k->exp_f32(y, x, n);
  if (v->isa == BE_ISA_scalar) {
    expect_exp(values, y, n);
  } else {
    exp_f32_scalar(expected, values, n);
    kc_expect_f32("y", expected, y, n);
  }
  kc_end();
}

void check_exp_f32(const kc_variant *v) {
  static float x[MAX_N];
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    for (size_t i = 0; i < SIZES; i++) {
      size_t n = size_at(i);
      kc_fill_f32(x, n, fill);
      KC_FOR_EDGES(edge) check_exp_case(v, x, n, kc_fill_name(fill), n & 1, edge);
    }
  // A dense sweep over every exponent: [-88, 89] evenly, then all magnitudes logarithmically.
  const size_t points = v->quick ? 1u << 16 : 1u << 22;
  for (size_t begin = 0; begin < points; begin += MAX_N) {
    for (size_t i = 0; i < MAX_N; i++)
      x[i] = (float)(-88 + 177.0 * (double)(begin + i) / (double)points);
    check_exp_case(v, x, MAX_N, "sweep", false, KC_EDGE_END);
    for (size_t i = 0; i < MAX_N; i++) {
      uint32_t bits = (uint32_t)((begin + i) * ((1ull << 32) / points)) + kc_random_below(1024);
      memcpy(&x[i], &bits, sizeof bits);
      if (KC_FLUSHES_DENORMALS && fpclassify(x[i]) == FP_SUBNORMAL)
        x[i] = 0;
    }
    check_exp_case(v, x, MAX_N, "bits", false, KC_EDGE_END);
  }
}

static void check_rope_case(const kc_variant *v, size_t half, kc_fill fill, bool in_place,
                            kc_edge edge) {
  static float expected[2 * MAX_N];
  kc_begin(edge, "half=%zu fill=%s in_place=%d", half, kc_fill_name(fill), in_place);
  float *x = kc_buffer(2 * half * sizeof *x), *y = in_place ? x : kc_buffer(2 * half * sizeof *y);
  float *cosine = kc_buffer(half * sizeof *cosine), *sine = kc_buffer(half * sizeof *sine);
  kc_fill_f32(x, 2 * half, fill);
  kc_fill_f32(cosine, half, fill == KC_FILL_SPECIAL ? fill : KC_FILL_NORMAL);
  kc_fill_f32(sine, half, KC_FILL_NORMAL);
  if (v->isa == BE_ISA_scalar)
    for (size_t i = 0; i < half; i++) { // products rounded to float, then the sum
      float a = x[i], b = x[half + i], ac = a * cosine[i], bs = b * sine[i];
      float bc = b * cosine[i], as = a * sine[i];
      expected[i] = ac - bs;
      expected[half + i] = bc + as;
    }
  else
    rope_f32_scalar(expected, x, cosine, sine, half);
  v->k->rope_f32(y, x, cosine, sine, half);
  kc_expect_f32("y", expected, y, 2 * half);
  kc_end();
}

void check_rope_f32(const kc_variant *v) {
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    for (size_t half = 0; half <= 130; half++)
      KC_FOR_EDGES(edge) {
        check_rope_case(v, half, fill, false, edge);
        check_rope_case(v, half, fill, true, edge);
      }
}

// --- benchmark: 2560 elements ------------------------------------------------------------------

enum { N = 2560 };
static float bench_a[N], bench_b[N], bench_y[N];

static void bench_binary(const kc_variant *v, binary_kernel *kernel) {
  kc_fill_f32(bench_a, N, KC_FILL_NORMAL);
  kc_fill_f32(bench_b, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 12.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      kernel(bench_y, bench_a, bench_b, N);
}

void bench_add_f32(const kc_variant *v) { bench_binary(v, v->k->add_f32); }
void bench_relu2_mul_f32(const kc_variant *v) { bench_binary(v, v->k->relu2_mul_f32); }
void bench_silu_mul_f32(const kc_variant *v) { bench_binary(v, v->k->silu_mul_f32); }

void bench_dequantize_f32(const kc_variant *v) {
  static int32_t acc[N];
  for (size_t i = 0; i < N; i++)
    acc[i] = (int32_t)kc_random() >> 12;
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 8.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->dequantize_f32(bench_y, acc, N, 12.5f, 0.7f, NULL);
}

void bench_scale_add_f32(const kc_variant *v) {
  static int32_t acc[N];
  for (size_t i = 0; i < N; i++)
    acc[i] = (int32_t)kc_random() >> 12;
  kc_fill_f32(bench_a, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 12.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->scale_add_f32(bench_y, acc, bench_a, N);
}

void bench_rms_norm_f32(const kc_variant *v) {
  kc_fill_f32(bench_a, N, KC_FILL_NORMAL);
  kc_fill_f32(bench_b, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 16.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->rms_norm_f32(bench_y, bench_a, bench_b, N, 1e-5f);
}

void bench_exp_f32(const kc_variant *v) {
  kc_fill_f32(bench_a, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 8.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->exp_f32(bench_y, bench_a, N);
}

void bench_rope_f32(const kc_variant *v) {
  kc_fill_f32(bench_a, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "half=64", 64 * 24.0, 64 * 4); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->rope_f32(bench_y, bench_a, bench_a + 128, bench_a + 192, 64);
}
