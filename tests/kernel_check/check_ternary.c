// SPDX-License-Identifier: MIT
// ternary_gemv_i8 and ternary_gemm_i8. Random data never overflows an int16 accumulator that is
// widened too late; the extreme fills do: codes all 2 or all 0 against activations all 127 or all
// -128, to K = 16384.
#include <stdlib.h>

#include "kernel_check.h"

typedef enum code_fill { // a P16 byte holds four codes 0..2
  CODES_RANDOM,
  CODES_ALL_0,
  CODES_ALL_1,
  CODES_ALL_2,
  CODES_0_OR_2,    // by byte
  CODES_ONE_FIELD, // 2 in one field of every byte, elsewhere 0
  CODES_HOSTILE,   // any byte, code 3 included: no value is promised, but nothing may break
  CODES_COUNT
} code_fill;

typedef enum q_fill { Q_RANDOM, Q_ALL_127, Q_ALL_MINUS_128, Q_EXTREMES, Q_COUNT } q_fill;

static void fill_codes(uint8_t *w, size_t bytes, code_fill fill) {
  for (size_t i = 0; i < bytes; i++)
    switch (fill) {
    case CODES_RANDOM:
      w[i] = 0;
      for (int f = 0; f < 4; f++)
        w[i] = (uint8_t)(w[i] | kc_random_below(3) << 2 * f);
      break;
    case CODES_ALL_0:
      w[i] = 0x00;
      break;
    case CODES_ALL_1:
      w[i] = 0x55;
      break;
    case CODES_ALL_2:
      w[i] = 0xaa;
      break;
    case CODES_0_OR_2:
      w[i] = kc_random() & 1 ? 0xaa : 0x00;
      break;
    case CODES_ONE_FIELD:
      w[i] = (uint8_t)(2 << 2 * (bytes / 64 % 4));
      break;
    default:
      w[i] = (uint8_t)kc_random();
      break;
    }
}

static void fill_q(int8_t *q, size_t n, q_fill fill) {
  for (size_t i = 0; i < n; i++)
    q[i] = fill == Q_ALL_127         ? 127
           : fill == Q_ALL_MINUS_128 ? -128
           : fill == Q_EXTREMES      ? (int8_t)(kc_random() & 1 ? 127 : -128)
                                     : (int8_t)kc_random();
}

static int32_t sum_q(const int8_t *q, size_t n) {
  int32_t sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += q[i];
  return sum;
}

// Independent of the scalar kernel: weights unpacked one by one by the formula of packing.py.
static void naive_row(int32_t *acc, const uint8_t *w, size_t panel_stride, size_t n_panels,
                      size_t k_blocks, const int8_t *q) {
  for (size_t row = 0; row < n_panels * 16; row++) {
    int64_t sum = 0;
    for (size_t k = 0; k < k_blocks * 16; k++) {
      size_t byte = row / 16 * panel_stride + k / 16 * 64 + 4 * (row % 16) + k % 4;
      int weight = (w[byte] >> 2 * (k % 16 / 4) & 3) - 1;
      sum += weight * q[k];
    }
    acc[row] = (int32_t)sum;
  }
}

typedef struct shape {
  size_t n_panels, k_blocks, m, stride_gap; // gap: bytes between panels, and elements elsewhere
} shape;

static void check_case(const kc_variant *v, bool gemm, shape s, code_fill codes, q_fill qs,
                       kc_edge edge) {
  size_t panel_stride = s.k_blocks * 64 + s.stride_gap, q_stride = s.k_blocks * 16 + s.stride_gap;
  size_t rows = s.n_panels * 16, acc_stride = rows + s.stride_gap;
  size_t w_bytes = s.n_panels ? (s.n_panels - 1) * panel_stride + s.k_blocks * 64 : 0;
  size_t q_bytes = (s.m - 1) * q_stride + s.k_blocks * 16;
  size_t acc_count = (s.m - 1) * acc_stride + rows;

  kc_begin(edge, "panels=%zu k_blocks=%zu m=%zu gap=%zu codes=%d q=%d", s.n_panels, s.k_blocks, s.m,
           s.stride_gap, (int)codes, (int)qs);
  uint8_t *w = kc_buffer(w_bytes);
  int8_t *q = kc_buffer(q_bytes);
  int32_t *q_sum = kc_buffer(s.m * sizeof *q_sum);
  int32_t *acc = kc_buffer(acc_count * sizeof *acc);
  fill_codes(w, w_bytes, codes);
  fill_q(q, q_bytes, qs);
  for (size_t t = 0; t < s.m; t++)
    q_sum[t] = sum_q(q + t * q_stride, s.k_blocks * 16);

  if (gemm)
    v->k->ternary_gemm_i8(acc, acc_stride, w, panel_stride, s.n_panels, s.k_blocks, q, q_stride,
                          q_sum, s.m);
  else
    v->k->ternary_gemv_i8(acc, w, panel_stride, s.n_panels, s.k_blocks, q, q_sum[0]);

  int32_t *expected = malloc(rows * sizeof *expected + 1);
  for (size_t t = 0; t < s.m && codes != CODES_HOSTILE; t++) {
    const int8_t *row = q + t * q_stride;
    if (v->isa == BE_ISA_scalar)
      naive_row(expected, w, panel_stride, s.n_panels, s.k_blocks, row);
    else
      ternary_gemv_i8_scalar(expected, w, panel_stride, s.n_panels, s.k_blocks, row, q_sum[t]);
    kc_expect_i32("acc", expected, acc + t * acc_stride, rows);
  }
  for (size_t i = 0; i < acc_count; i++) // between the rows of acc nothing may be written
    if (i % acc_stride >= rows && (uint32_t)acc[i] != 0xa5a5a5a5)
      kc_fail("acc[%zu], in the gap between rows, was written", i);
  free(expected);
  kc_end();
}

static void check_fills(const kc_variant *v, bool gemm, shape s) {
  for (code_fill codes = 0; codes < CODES_COUNT; codes++)
    for (q_fill q = 0; q < Q_COUNT; q++)
      KC_FOR_EDGES(edge) check_case(v, gemm, s, codes, q, edge);
}

void check_ternary_gemv_i8(const kc_variant *v) {
  for (size_t k_blocks = 0; k_blocks <= (v->quick ? 35 : 70); k_blocks++) {
    shape s = {1 + kc_random_below(3), k_blocks, 1, 0};
    KC_FOR_EDGES(edge) check_case(v, false, s, CODES_RANDOM, Q_RANDOM, edge);
    KC_FOR_EDGES(edge) check_case(v, false, s, CODES_ALL_2, Q_ALL_MINUS_128, edge);
  }
  KC_FOR_EDGES(edge) check_case(v, false, (shape){0, 3, 1, 0}, CODES_RANDOM, Q_RANDOM, edge);
  KC_FOR_EDGES(edge) check_case(v, false, (shape){5, 3, 1, 68}, CODES_RANDOM, Q_RANDOM, edge);
  check_fills(v, false, (shape){1, 1, 1, 0});
  check_fills(v, false, (shape){2, 160, 1, 0});
  check_fills(v, false, (shape){1, 1024, 1, 0});
  // More columns than the AVX-512 kernel can add up by itself.
  KC_FOR_EDGES(edge)
  check_case(v, false, (shape){1, 40000, 1, 0}, CODES_ALL_2, Q_ALL_MINUS_128, edge);
}

void check_ternary_gemm_i8(const kc_variant *v) {
  for (size_t m = 1; m <= 20; m++)
    for (size_t n_panels = 0; n_panels <= (v->quick ? 2 : 5); n_panels++) {
      shape s = {n_panels, 1 + kc_random_below(v->quick ? 20 : 40), m, 4 * kc_random_below(2)};
      KC_FOR_EDGES(edge) check_case(v, true, s, CODES_RANDOM, Q_RANDOM, edge);
    }
  for (size_t k_blocks = 0; k_blocks <= (v->quick ? 20 : 70); k_blocks++)
    for (size_t m = 1; m <= 13; m += 4) {
      shape s = {3, k_blocks, m, 0};
      KC_FOR_EDGES(edge) check_case(v, true, s, CODES_RANDOM, Q_RANDOM, edge);
      KC_FOR_EDGES(edge) check_case(v, true, s, CODES_ALL_2, Q_ALL_MINUS_128, edge);
    }
  for (size_t m = 1; m <= 9; m++)
    check_fills(v, true, (shape){m > 8 ? 2 : 1, v->quick ? 40 : 100, m, 0});
  if (!v->quick)
    check_fills(v, true, (shape){3, 24, 128, 0});
  check_fills(v, true, (shape){2, 1024, v->quick ? 9 : 12, 0});
}

// --- benchmark ---------------------------------------------------------------------------------

static uint8_t *random_weights(size_t bytes) {
  uint8_t *w = malloc(bytes);
  if (!w)
    exit(1);
  fill_codes(w, bytes < 65536 ? bytes : 65536, CODES_RANDOM);
  for (size_t i = 65536; i < bytes; i++) // repeats: the arithmetic does not depend on data
    w[i] = w[i - 65536];
  return w;
}

static void bench_gemv_shape(const kc_variant *v, const char *label, size_t rows, size_t k,
                             size_t matrices) {
  size_t bytes = rows * k / 4;
  uint8_t *w = random_weights(bytes * matrices);
  int8_t *q = malloc(k);
  int32_t *acc = malloc(rows * sizeof *acc);
  fill_q(q, k, Q_RANDOM);
  size_t next = 0;
  for (kc_timer timer = kc_timer_begin(v, label, (double)bytes, (double)rows * (double)k);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++) {
      v->k->ternary_gemv_i8(acc, w + next * bytes, k * 4, rows / 16, k / 16, q, 0);
      next = (next + 1) % matrices;
    }
  free(w);
  free(q);
  free(acc);
}

void bench_ternary_gemv_i8(const kc_variant *v) {
  bench_gemv_shape(v, "64x2560 (L1-L2)", 64, 2560, 1);
  bench_gemv_shape(v, "6912x2560 hot", 6912, 2560, 1);
  bench_gemv_shape(v, "2560x6912 hot", 2560, 6912, 1);
  if (!v->quick)
    bench_gemv_shape(v, "6912x2560 x64 (DRAM)", 6912, 2560, 64);
}

static void bench_gemm_shape(const kc_variant *v, const char *label, size_t m) {
  const size_t rows = 6912, k = 2560;
  uint8_t *w = random_weights(rows * k / 4);
  int8_t *q = malloc(m * k);
  int32_t *acc = malloc(m * 64 * sizeof *acc), *q_sum = calloc(m, sizeof *q_sum);
  fill_q(q, m * k, Q_RANDOM);
  // As the engine does: four panels and 64 rows of q at a time, so that accumulators stay in the
  // first-level cache.
  for (kc_timer timer = kc_timer_begin(v, label, (double)rows * k / 4, (double)rows * k * m);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      for (size_t p = 0; p < rows / 16; p += 4)
        for (size_t t = 0; t < m; t += 64)
          v->k->ternary_gemm_i8(acc, 64, w + p * k * 4, k * 4, 4, k / 16, q + t * k, k, q_sum + t,
                                m - t < 64 ? m - t : 64);
  free(w);
  free(q);
  free(acc);
  free(q_sum);
}

void bench_ternary_gemm_i8(const kc_variant *v) {
  bench_gemm_shape(v, "m=2", 2);
  bench_gemm_shape(v, "m=4", 4);
  bench_gemm_shape(v, "m=8", 8);
  bench_gemm_shape(v, "m=16", 16);
  bench_gemm_shape(v, "m=128", 128);
}
