// SPDX-License-Identifier: MIT
// quantize_i16, head_gemv_i8, head_gemv_i4. The extremes: weights all -128 or all nibble 15
// against activations all at the limit, and int16 that no quantisation gives, whose sums wrap.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

static size_t padded(size_t n) { return (n + BE_WIDE_K - 1) / BE_WIDE_K * BE_WIDE_K; }

// --- quantize_i16 ------------------------------------------------------------------------------

typedef struct row { // one result
  int16_t *q;
  float *s;
  int32_t *q_sum;
} row;

// Independent of the kernels: rounding by nearbyint in double precision, where x * s is exact.
static void expect_quantized(const row *actual, const float *x, size_t n, int32_t limit) {
  double m = 1e-5f;
  for (size_t i = 0; i < n; i++)
    m = fabs((double)x[i]) > m ? fabs((double)x[i]) : m;
  float s = (float)(limit / m); // double rounding is harmless: 53 >= 2 * 24 + 2 bits
  kc_expect_f32("s", &s, actual->s, 1);
  for (size_t g = 0; g < padded(n) / BE_I4_GROUP_K; g++) {
    int32_t sum = 0;
    for (size_t i = g * BE_I4_GROUP_K; i < (g + 1) * BE_I4_GROUP_K; i++) {
      double v = i < n ? nearbyint((double)(float)((double)x[i] * (double)s)) : 0;
      int expected = isnan(v) ? 0 : v > limit ? limit : v < -limit ? -limit : (int)v;
      if (expected != actual->q[i])
        kc_fail("q[%zu]: expected %d, got %d", i, expected, actual->q[i]);
      sum += expected;
    }
    kc_expect_i32("q_sum", &sum, actual->q_sum + g, 1);
  }
}

static void check_quantize_case(const kc_variant *v, size_t n, kc_fill fill, int32_t limit,
                                const row *expected) {
  KC_FOR_EDGES(edge) {
    kc_begin(edge, "n=%zu limit=%d fill=%s", n, (int)limit, kc_fill_name(fill));
    float *x = kc_buffer(n * sizeof *x);
    row actual = {kc_buffer(padded(n) * sizeof *actual.q), kc_buffer(sizeof *actual.s),
                  kc_buffer(padded(n) / BE_I4_GROUP_K * sizeof *actual.q_sum)};
    kc_fill_f32(x, n, fill);
    v->k->quantize_i16(actual.q, actual.s, actual.q_sum, x, n, limit);
    if (v->isa == BE_ISA_scalar) {
      expect_quantized(&actual, x, n, limit);
    } else {
      quantize_i16_scalar(expected->q, expected->s, expected->q_sum, x, n, limit);
      kc_expect_f32("s", expected->s, actual.s, 1);
      kc_expect_u16("q", (uint16_t *)expected->q, (uint16_t *)actual.q, padded(n));
      kc_expect_i32("q_sum", expected->q_sum, actual.q_sum, padded(n) / BE_I4_GROUP_K);
    }
    kc_end();
  }
}

void check_quantize_i16(const kc_variant *v) {
  row expected = {kc_scratch(16384), kc_scratch(sizeof(float)), kc_scratch(4096)};
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++) {
    for (size_t n = 0; n <= 200; n++)
      check_quantize_case(v, n, fill, be_head_limit((uint32_t)n), &expected);
    check_quantize_case(v, 2560, fill, be_head_limit(2560), &expected);
    check_quantize_case(v, 6912, fill, 127, &expected);
    check_quantize_case(v, 2561 + kc_random_below(1000), fill, INT16_MAX, &expected);
  }
}

void bench_quantize_i16(const kc_variant *v) {
  enum { N = 2560 };
  static float x[N];
  static int16_t q[N];
  static int32_t q_sum[N / BE_I4_GROUP_K];
  float s;
  kc_fill_f32(x, N, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "n=2560", N * 6.0, N); kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->quantize_i16(q, &s, q_sum, x, N, be_head_limit(N));
}

// --- head_gemv ---------------------------------------------------------------------------------

typedef enum byte_fill {
  BYTES_RANDOM,
  BYTES_LOW,
  BYTES_HIGH,
  BYTES_EXTREMES,
  BYTES_COUNT
} byte_fill;

// int8: -128 or 127; int4: nibbles 0 or 15.
static void fill_bytes(uint8_t *w, size_t n, uint32_t bits, byte_fill fill) {
  uint8_t low = bits == 8 ? 0x80 : 0x00, high = bits == 8 ? 0x7f : 0xff;
  for (size_t i = 0; i < n; i++)
    w[i] = fill == BYTES_LOW        ? low
           : fill == BYTES_HIGH     ? high
           : fill == BYTES_EXTREMES ? (kc_random() & 1 ? low : high)
                                    : (uint8_t)kc_random();
}

// Float scales in the places where the layout has them.
static void fill_scales(uint8_t *w, size_t n_panels, size_t k, uint32_t bits, kc_fill fill) {
  size_t panel_bytes = be_head_panel_bytes(bits, k);
  for (size_t p = 0; p < n_panels; p++) {
    float scales[2 * BE_HEAD_ROWS];
    if (bits == 8) {
      kc_fill_f32(scales, BE_HEAD_ROWS, fill);
      memcpy(w + p * panel_bytes, scales, BE_I8_SCALES);
      continue;
    }
    for (size_t at = 0; at < panel_bytes; at += BE_I4_BLOCK_BYTES) {
      uint16_t halves[2 * BE_HEAD_ROWS];
      kc_fill_f32(scales, 2 * BE_HEAD_ROWS, fill);
      f32_to_f16_scalar(halves, scales, 2 * BE_HEAD_ROWS);
      memcpy(w + p * panel_bytes + at, halves, sizeof halves);
    }
  }
}

typedef enum q_fill { Q_RANDOM, Q_LIMIT, Q_MINUS_LIMIT, Q_EXTREMES, Q_HOSTILE, Q_COUNT } q_fill;

static void fill_q(int16_t *q, size_t n, size_t k, q_fill fill) {
  int32_t limit = be_head_limit((uint32_t)k);
  for (size_t i = 0; i < n; i++) {
    int32_t any = (int32_t)kc_random_below(2 * (size_t)limit + 1) - limit;
    q[i] = (int16_t)(fill == Q_HOSTILE       ? (kc_random() & 3 ? INT16_MIN : INT16_MAX)
                     : i >= k                ? 0
                     : fill == Q_LIMIT       ? limit
                     : fill == Q_MINUS_LIMIT ? -limit
                     : fill == Q_EXTREMES    ? (any < 0 ? -limit : limit)
                                             : any);
  }
}

static int32_t wrapped(int64_t x) { // modulo 2^32
  uint32_t low = (uint32_t)(uint64_t)x;
  int32_t y;
  memcpy(&y, &low, sizeof y);
  return y;
}

// Independent of the kernels: every weight by the formula of head_layout.h, sums in int64.
static float naive_row(const uint8_t *w, uint32_t bits, size_t r, size_t k, const int16_t *q,
                       float s) {
  const uint8_t *panel = w + r / 16 * be_head_panel_bytes(bits, k);
  if (bits == 8) {
    int64_t acc = 0;
    float scale;
    memcpy(&scale, panel + 4 * (r % 16), sizeof scale);
    for (size_t i = 0; i < (k + 3) / 4 * 4; i++)
      acc += q[i] * (int8_t)panel[64 + i / 4 * 64 + 4 * (r % 16) + i % 4];
    return ((float)wrapped(acc) / s) * scale;
  }
  float y = 0;
  for (size_t g = 0; g < padded(k) / 32; g++) {
    const uint8_t *block = panel + g / 2 * 576;
    int64_t part = 0;
    for (size_t i = 32 * g; i < 32 * g + 32; i++) {
      size_t column = i % 64, bit = 16 * (column % 2) + 4 * (column % 8 / 2);
      uint8_t byte = block[64 + column / 8 * 64 + 4 * (r % 16) + bit / 8];
      part += q[i] * ((byte >> bit % 8 & 15) - 8);
    }
    uint16_t half;
    float scale;
    memcpy(&half, block + 32 * (g % 2) + 2 * (r % 16), sizeof half);
    f16_to_f32_scalar(&scale, &half, 1);
    y += (float)wrapped(part) * scale;
  }
  return y / s;
}

static void check_case(const kc_variant *v, uint32_t bits, size_t n_panels, size_t k,
                       byte_fill bytes, kc_fill scales, q_fill qs) {
  static float expected[16 * 16];
  const float divisors[] = {1.0f, 6553.0f / 3.7f, 0x1p31f, 0.0f};
  float s = divisors[kc_random_below(KC_FLUSHES_DENORMALS ? 3 : 4)];
  KC_FOR_EDGES(edge) {
    kc_begin(edge, "panels=%zu k=%zu bytes=%d scales=%s q=%d s=%g", n_panels, k, (int)bytes,
             kc_fill_name(scales), (int)qs, (double)s);
    size_t w_bytes = be_head_bytes(bits, n_panels * BE_HEAD_ROWS, k);
    uint8_t *w = kc_buffer(w_bytes);
    int16_t *q = kc_buffer(padded(k) * sizeof *q);
    int32_t *q_sum = kc_buffer(padded(k) / BE_I4_GROUP_K * sizeof *q_sum);
    float *y = kc_buffer(n_panels * BE_HEAD_ROWS * sizeof *y);
    fill_bytes(w, w_bytes, bits, bytes);
    fill_scales(w, n_panels, k, bits, scales);
    fill_q(q, padded(k), k, qs);
    for (size_t i = 0; i < padded(k); i++)
      q_sum[i / 32] = q[i] + (i % 32 ? q_sum[i / 32] : 0);
    if (bits == 8)
      v->k->head_gemv_i8(y, w, n_panels, k, q, s);
    else
      v->k->head_gemv_i4(y, w, n_panels, k, q, q_sum, s);
    for (size_t r = 0; r < n_panels * BE_HEAD_ROWS && v->isa == BE_ISA_scalar; r++)
      expected[r] = naive_row(w, bits, r, k, q, s);
    if (v->isa != BE_ISA_scalar && bits == 8)
      head_gemv_i8_scalar(expected, w, n_panels, k, q, s);
    if (v->isa != BE_ISA_scalar && bits == 4)
      head_gemv_i4_scalar(expected, w, n_panels, k, q, q_sum, s);
    kc_expect_f32("y", expected, y, n_panels * BE_HEAD_ROWS);
    kc_end();
  }
}

static void check_head(const kc_variant *v, uint32_t bits) {
  for (size_t k = 0; k <= (v->quick ? 140 : 300); k++)
    check_case(v, bits, kc_random_below(4), k, BYTES_RANDOM, KC_FILL_NORMAL, Q_RANDOM);
  const size_t wide[] = {1, 64, 100, 2560, 6912, 16384};
  for (size_t i = 0; i < sizeof wide / sizeof *wide - (v->quick ? 1 : 0); i++)
    for (byte_fill bytes = 0; bytes < BYTES_COUNT; bytes++)
      for (q_fill q = 0; q < Q_COUNT; q++)
        check_case(v, bits, 2, wide[i], bytes, KC_FILL_NORMAL, q);
  for (kc_fill scales = 0; scales < KC_FILL_COUNT; scales++)
    for (size_t n_panels = 0; n_panels <= 5; n_panels++)
      check_case(v, bits, n_panels, 60 + kc_random_below(200), BYTES_RANDOM, scales, Q_RANDOM);
  check_case(v, bits, 1, BE_HEAD_MAX_K, BYTES_LOW, KC_FILL_NORMAL, Q_MINUS_LIMIT);
  check_case(v, bits, 1, BE_HEAD_MAX_K, BYTES_HIGH, KC_FILL_NORMAL, Q_LIMIT);
}

void check_head_gemv_i8(const kc_variant *v) { check_head(v, 8); }
void check_head_gemv_i4(const kc_variant *v) { check_head(v, 4); }

static void bench_shape(const kc_variant *v, uint32_t bits, const char *label, size_t rows) {
  const size_t k = 2560, bytes = be_head_bytes(bits, rows, k), chunk = 1 << 16;
  uint8_t *w = malloc(bytes);
  int16_t *q = malloc(k * sizeof *q);
  int32_t *q_sum = calloc(k / BE_I4_GROUP_K, sizeof *q_sum);
  float *y = malloc(rows * sizeof *y);
  if (!w || !q || !q_sum || !y)
    exit(1);
  fill_bytes(w, bytes < chunk ? bytes : chunk, bits, BYTES_RANDOM);
  for (size_t i = chunk; i < bytes; i++) // repeats: the arithmetic does not depend on data
    w[i] = w[i - chunk];
  fill_scales(w, rows / BE_HEAD_ROWS, k, bits, KC_FILL_ZERO); // no denormals to stumble over
  fill_q(q, k, k, Q_RANDOM);
  for (kc_timer timer = kc_timer_begin(v, label, (double)bytes, (double)(rows * k));
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++) {
      if (bits == 8)
        v->k->head_gemv_i8(y, w, rows / BE_HEAD_ROWS, k, q, 1.0f);
      else
        v->k->head_gemv_i4(y, w, rows / BE_HEAD_ROWS, k, q, q_sum, 1.0f);
    }
  free(w);
  free(q);
  free(q_sum);
  free(y);
}

static void bench_head(const kc_variant *v, uint32_t bits) {
  bench_shape(v, bits, "64x2560 (L2)", 64);
  if (!v->quick)
    bench_shape(v, bits, "192000x2560 (DRAM)", 192000);
}

void bench_head_gemv_i8(const kc_variant *v) { bench_head(v, 8); }
void bench_head_gemv_i4(const kc_variant *v) { bench_head(v, 4); }
