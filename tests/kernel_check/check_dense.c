// SPDX-License-Identifier: MIT
// dense_gemv_f32, dense_gemv_f16, dense_gemv_bf16.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

// The three kernels behind one signature.
typedef struct format {
  const char *name;
  size_t size;
  void (*kernel)(const kc_variant *v, float *y, const void *w, size_t n_rows, size_t k,
                 const float *x);
  void (*scalar)(float *y, const void *w, size_t n_rows, size_t k, const float *x);
  void (*narrow)(void *w, const float *x, size_t n);
  float (*widen)(const void *w, size_t i);
} format;

static void run_f32(const kc_variant *v, float *y, const void *w, size_t n_rows, size_t k,
                    const float *x) {
  v->k->dense_gemv_f32(y, w, n_rows, k, x);
}
static void scalar_f32(float *y, const void *w, size_t n_rows, size_t k, const float *x) {
  dense_gemv_f32_scalar(y, w, n_rows, k, x);
}
static void narrow_f32(void *w, const float *x, size_t n) { memcpy(w, x, n * sizeof *x); }
static float widen_f32(const void *w, size_t i) { return ((const float *)w)[i]; }

static void run_f16(const kc_variant *v, float *y, const void *w, size_t n_rows, size_t k,
                    const float *x) {
  v->k->dense_gemv_f16(y, w, n_rows, k, x);
}
static void scalar_f16(float *y, const void *w, size_t n_rows, size_t k, const float *x) {
  dense_gemv_f16_scalar(y, w, n_rows, k, x);
}
static void narrow_f16(void *w, const float *x, size_t n) { f32_to_f16_scalar(w, x, n); }
static float widen_f16(const void *w, size_t i) {
  float y;
  f16_to_f32_scalar(&y, (const uint16_t *)w + i, 1);
  return y;
}

static void run_bf16(const kc_variant *v, float *y, const void *w, size_t n_rows, size_t k,
                     const float *x) {
  v->k->dense_gemv_bf16(y, w, n_rows, k, x);
}
static void scalar_bf16(float *y, const void *w, size_t n_rows, size_t k, const float *x) {
  dense_gemv_bf16_scalar(y, w, n_rows, k, x);
}
static void narrow_bf16(void *w, const float *x, size_t n) { // truncation will do for data
  for (size_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    ((uint16_t *)w)[i] = (uint16_t)(bits >> 16);
  }
}
static float widen_bf16(const void *w, size_t i) {
  float y;
  bf16_to_f32_scalar(&y, (const uint16_t *)w + i, 1);
  return y;
}

static const format f32 = {"f32", 4, run_f32, scalar_f32, narrow_f32, widen_f32};
static const format f16 = {"f16", 2, run_f16, scalar_f16, narrow_f16, widen_f16};
static const format bf16 = {"bf16", 2, run_bf16, scalar_bf16, narrow_bf16, widen_bf16};

enum { MAX_ROWS = 64, MAX_ELEMENTS = 1 << 17 };

static void check_case(const kc_variant *v, const format *f, size_t n_rows, size_t k, kc_fill fill,
                       kc_edge edge) {
  static float wide[MAX_ELEMENTS], expected[MAX_ROWS];
  kc_begin(edge, "rows=%zu k=%zu fill=%s", n_rows, k, kc_fill_name(fill));
  void *w = kc_buffer(n_rows * k * f->size);
  float *x = kc_buffer(k * sizeof *x), *y = kc_buffer(n_rows * sizeof *y);
  kc_fill_f32(wide, n_rows * k, fill);
  f->narrow(w, wide, n_rows * k);
  kc_fill_f32(x, k, fill);
  f->kernel(v, y, w, n_rows, k, x);
  if (v->isa == BE_ISA_scalar && fill == KC_FILL_NORMAL) {
    for (size_t r = 0; r < n_rows; r++) {
      double sum = 0, magnitude = 0;
      for (size_t i = 0; i < k; i++) {
        double product = (double)f->widen(w, r * k + i) * (double)x[i];
        sum += product;
        magnitude += fabs(product);
      }
      // A lane rounds k / 16 products and sums, the tree 4 more times.
      kc_expect_near("y", sum, (double)y[r], magnitude * (double)(k / 16 + 6) * 0x1p-24);
    }
  } else {
    f->scalar(expected, w, n_rows, k, x);
    kc_expect_f32("y", expected, y, n_rows);
  }
  kc_end();
}

static void check_dense(const kc_variant *v, const format *f) {
  for (kc_fill fill = 0; fill < KC_FILL_COUNT; fill++)
    KC_FOR_EDGES(edge) {
      for (size_t k = 0; k <= 130; k++)
        check_case(v, f, kc_random_below(10), k, fill, edge);
      for (size_t n_rows = 0; n_rows <= 20; n_rows++)
        check_case(v, f, n_rows, 64 + kc_random_below(2), fill, edge);
      check_case(v, f, 17, 2560, fill, edge);
      check_case(v, f, 9, 6912 + kc_random_below(100), fill, edge);
    }
}

void check_dense_gemv_f32(const kc_variant *v) { check_dense(v, &f32); }
void check_dense_gemv_f16(const kc_variant *v) { check_dense(v, &f16); }
void check_dense_gemv_bf16(const kc_variant *v) { check_dense(v, &bf16); }

// --- benchmark ---------------------------------------------------------------------------------

static void bench_shape(const kc_variant *v, const format *f, const char *label, size_t n_rows,
                        size_t k) {
  uint8_t *w = malloc(n_rows * k * f->size);
  float *x = malloc(k * sizeof *x), *y = malloc(n_rows * sizeof *y);
  if (!w || !x || !y)
    exit(1);
  kc_fill_f32(x, k, KC_FILL_NORMAL);
  for (size_t r = 0; r < n_rows; r++)
    f->narrow(w + r * k * f->size, x, k);
  for (kc_timer timer =
           kc_timer_begin(v, label, (double)(n_rows * k * f->size), (double)n_rows * (double)k);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      f->kernel(v, y, w, n_rows, k, x);
  free(w);
  free(x);
  free(y);
}

static void bench_dense(const kc_variant *v, const format *f) {
  bench_shape(v, f, "64x2560 (L2)", 64, 2560);
  if (!v->quick)
    bench_shape(v, f, "40000x2560 (DRAM)", 40000, 2560);
}

void bench_dense_gemv_f32(const kc_variant *v) { bench_dense(v, &f32); }
void bench_dense_gemv_f16(const kc_variant *v) { bench_dense(v, &f16); }
void bench_dense_gemv_bf16(const kc_variant *v) { bench_dense(v, &bf16); }
