// SPDX-License-Identifier: MIT
// bf16_to_f32, f16_to_f32, f32_to_f16: all 65536 inputs of the first two; for the third all
// halves, their neighbours, the midpoints between them and theirs, and random bits.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

static float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// By the definition of the format, in double precision.
static double half_value(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double magnitude = exponent == 31  ? (mantissa ? (double)NAN : (double)INFINITY)
                     : exponent == 0 ? ldexp(mantissa, -24)
                                     : ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

// Nearest half by rounding in units of its last place.
static uint16_t nearest_half(float x) {
  if (isnan(x))
    return 0x7e00;
  uint16_t sign = signbit(x) ? 0x8000 : 0;
  double magnitude = fabs((double)x);
  if (magnitude >= 65520) // half way from the largest half to 2^16
    return sign | 0x7c00;
  int exponent = magnitude < ldexp(1, -14) ? -14 : ilogb(magnitude);
  double units = nearbyint(ldexp(magnitude, 10 - exponent));
  return (uint16_t)(sign + (units < 1024 ? units : units + (exponent + 14) * 1024.0));
}

// Bit for bit, payloads of NaN included.
static void expect_bits(const float *expected, const float *actual, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (to_bits(expected[i]) != to_bits(actual[i])) {
      kc_fail("y[%zu]: expected %08x, got %08x", i, (unsigned)to_bits(expected[i]),
              (unsigned)to_bits(actual[i]));
      return;
    }
}

typedef void widen_kernel(float *y, const uint16_t *x, size_t n);
typedef float widen_reference(uint16_t x);

static float bf16_reference(uint16_t x) { return from_bits((uint32_t)x << 16); }

static float f16_reference(uint16_t x) {
  if ((x & 0x7fff) <= 0x7c00)
    return (float)half_value(x);
  return from_bits((uint32_t)(x & 0x8000) << 16 | 0x7fc00000 | (uint32_t)(x & 0x3ff) << 13);
}

static void check_widen_case(widen_kernel *kernel, widen_reference *reference, uint16_t first,
                             size_t n, kc_edge edge) {
  static float expected[4096];
  kc_begin(edge, "n=%zu first=0x%04x", n, first);
  uint16_t *x = kc_buffer(n * sizeof *x);
  float *y = kc_buffer(n * sizeof *y);
  for (size_t i = 0; i < n; i++) {
    x[i] = (uint16_t)(first + i);
    expected[i] = reference(x[i]);
  }
  kernel(y, x, n);
  expect_bits(expected, y, n);
  kc_end();
}

static void check_widen(widen_kernel *kernel, widen_reference *reference) {
  KC_FOR_EDGES(edge) {
    for (size_t n = 0; n <= 130; n++)
      check_widen_case(kernel, reference, (uint16_t)kc_random(), n, edge);
    for (size_t first = 0; first < 65536; first += 4096)
      check_widen_case(kernel, reference, (uint16_t)first, 4096, edge);
  }
}

void check_bf16_to_f32(const kc_variant *v) { check_widen(v->k->bf16_to_f32, bf16_reference); }
void check_f16_to_f32(const kc_variant *v) { check_widen(v->k->f16_to_f32, f16_reference); }

static void check_narrow_case(const kc_variant *v, const float *values, size_t n, const char *what,
                              kc_edge edge) {
  static uint16_t expected[4096];
  kc_begin(edge, "n=%zu values=%s", n, what);
  float *x = kc_buffer(n * sizeof *x);
  uint16_t *y = kc_buffer(n * sizeof *y);
  memcpy(x, values, n * sizeof *x);
  for (size_t i = 0; i < n; i++)
    expected[i] = nearest_half(x[i]);
  v->k->f32_to_f16(y, x, n);
  kc_expect_u16("y", expected, y, n);
  kc_end();
}

void check_f32_to_f16(const kc_variant *v) {
  static float x[4096];
  KC_FOR_EDGES(edge) {
    for (size_t n = 0; n <= 130; n++)
      for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++) {
        kc_fill_f32(x, n, fill);
        check_narrow_case(v, x, n, kc_fill_name(fill), edge);
      }
    for (size_t begin = 0; begin < 65536; begin += 512) {
      for (size_t i = 0; i < 512; i++) { // a half, the midpoint above it, and their neighbours
        uint32_t half = to_bits(f16_reference((uint16_t)(begin + i)));
        uint32_t next = to_bits(f16_reference((uint16_t)(begin + i + 1)));
        uint32_t middle = half + (next - half) / 2;
        const uint32_t bits[8] = {half, half + 1, half - 1, middle, middle + 1, middle - 1};
        for (size_t j = 0; j < 8; j++)
          x[8 * i + j] = from_bits(j < 6 ? bits[j] : kc_random());
      }
      check_narrow_case(v, x, 4096, "halves and midpoints", edge);
    }
  }
}

// --- benchmark ---------------------------------------------------------------------------------

enum { N = 2560 };

static void bench_widen(const kc_variant *v, widen_kernel *kernel) {
  static float y[N];
  static uint16_t x[N];
  for (size_t i = 0; i < N; i++)
    x[i] = (uint16_t)(kc_random() & 0x3fff);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 6.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      kernel(y, x, N);
}

void bench_bf16_to_f32(const kc_variant *v) { bench_widen(v, v->k->bf16_to_f32); }
void bench_f16_to_f32(const kc_variant *v) { bench_widen(v, v->k->f16_to_f32); }

void bench_f32_to_f16(const kc_variant *v) {
  static float x[N];
  static uint16_t y[N];
  kc_fill_f32(x, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 6.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->f32_to_f16(y, x, N);
}
