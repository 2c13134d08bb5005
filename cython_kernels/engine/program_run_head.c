// SPDX-License-Identifier: MIT
// Work items of output layers: float, quantised, and float screened by a quantised one.
#include "program_run_head.h"

#include <math.h>
#include <string.h>

#include "head_screen.h"
#include "kernels.h"
#include "program_operands.h"

enum { SCREEN_ROWS = 512 }; // of one item: as many streams as it keeps

static size_t dense_item_rows(const be_instruction *in) {
  size_t rows_per_item = BE_ITEM_BYTES / (in->dim[1] * be_dtype_bytes(in->dim[2]));
  return rows_per_item < 8 ? 8 : rows_per_item;
}

size_t be_dense_items(const be_instruction *in) {
  return (in->dim[0] + dense_item_rows(in) - 1) / dense_item_rows(in);
}

// y[r] = row r of the table times x, for `count` rows from `row` on.
static void dense_rows(const be_kernels *kernels, float *y, const uint8_t *table, uint32_t dtype,
                       size_t row, size_t count, size_t k, const float *x) {
  const uint8_t *w = table + row * k * be_dtype_bytes(dtype);
  if (dtype == BE_F32)
    kernels->dense_gemv_f32(y, (const float *)w, count, k, x);
  else if (dtype == BE_F16)
    kernels->dense_gemv_f16(y, (const uint16_t *)w, count, k, x);
  else
    kernels->dense_gemv_bf16(y, (const uint16_t *)w, count, k, x);
}

static void run_dense_item(const be_pass *p, const be_instruction *in, size_t item,
                           const uint8_t *table, const float *bias) {
  be_rows r = be_instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1];
  size_t row = item * dense_item_rows(in), count = min_size(dense_item_rows(in), n_rows - row);
  for (size_t t = r.begin; t < r.end; t++) {
    float *y = WRITE(float, 0, n_rows) + t * n_rows + row;
    dense_rows(p->kernels, y, table, in->dim[2], row, count, k, READ(float, 2) + t * k);
    if (bias)
      p->kernels->add_f32(y, y, bias + row, count);
  }
}

void be_run_dense_linear(const be_pass *p, const be_instruction *in, size_t item) {
  run_dense_item(p, in, item, READ(uint8_t, 1), READ(float, 3));
}

static size_t head_item_panels(const be_instruction *in) {
  size_t panels = BE_HEAD_ITEM_BYTES / be_head_panel_bytes(in->dim[2], in->dim[1]);
  return panels < 1 ? 1 : min_size(panels, BE_ITEM_PANELS);
}

size_t be_head_items(const be_instruction *in) {
  size_t rows_of_item = head_item_panels(in) * BE_HEAD_ROWS;
  return (in->dim[0] + rows_of_item - 1) / rows_of_item;
}

void be_run_head_linear(const be_pass *p, const be_instruction *in, size_t item) {
  be_rows r = be_instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1], padded = be_round_up(k, BE_WIDE_K);
  size_t groups = padded / BE_I4_GROUP_K, panels = head_item_panels(in);
  size_t row = item * panels * BE_HEAD_ROWS;
  size_t count = min_size(panels * BE_HEAD_ROWS, n_rows - row);
  const uint8_t *w = READ(uint8_t, 1) + item * panels * be_head_panel_bytes(in->dim[2], k);
  const float *s = READ(float, 3), *bias = READ(float, 5);
  panels = (count + BE_HEAD_ROWS - 1) / BE_HEAD_ROWS;
  for (size_t t = r.begin; t < r.end; t++) {
    const int16_t *q = READ(int16_t, 2) + t * padded;
    float rows_of_panels[BE_ITEM_PANELS * BE_HEAD_ROWS]; // y may end within the last panel
    float *y = WRITE(float, 0, n_rows) + t * n_rows + row;
    if (in->dim[2] == 8)
      p->kernels->head_gemv_i8(rows_of_panels, w, panels, k, q, s[t]);
    else
      p->kernels->head_gemv_i4(rows_of_panels, w, panels, k, q, READ(int32_t, 4) + t * groups,
                               s[t]);
    if (bias)
      p->kernels->add_f32(y, rows_of_panels, bias + row, count);
    else
      memcpy(y, rows_of_panels, count * sizeof *y);
  }
}

void be_run_screen_limits(const be_pass *p, const be_instruction *in, size_t t) {
  size_t rows = in->dim[0], k = in->dim[1], padded = be_round_up(k, BE_WIDE_K);
  const float *y = WRITE(float, 1, rows) + t * rows, *x = READ(float, 4) + t * k;
  be_screen_limits limits =
      be_screen_errors(x, READ(int16_t, 2) + t * padded, READ(float, 3)[t], k, in->dim[2]);
  uint32_t ids[BE_MAX_BEST];
  if (be_screen_largest(ids, p->best, y, rows) == p->best) {
    float least = INFINITY;
    for (size_t i = 0; i < p->best; i++) {
      float z;
      dense_rows(p->kernels, &z, READ(uint8_t, 5), in->dim[3], ids[i], 1, k, x);
      least = z < least || z != z ? z : least; // NaN stays
    }
    limits.threshold = least == least ? least - p->margin : -INFINITY;
  }
  WRITE(be_screen_limits, 0, 1)[t] = limits;
}

static void run_screened_rows(const be_pass *p, const be_instruction *in, size_t item) {
  be_rows r = be_instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1], row = item * SCREEN_ROWS;
  size_t count = min_size(SCREEN_ROWS, n_rows - row), rescored = 0;
  const float *residuals = READ(float, 4) + row, *norms = residuals + n_rows;
  uint8_t keep[SCREEN_ROWS];
  for (size_t t = r.begin; t < r.end; t++) {
    float *y = WRITE(float, 0, n_rows) + t * n_rows + row;
    be_screen_keep(keep, y, residuals, norms, count, &READ(be_screen_limits, 1)[t]);
    for (size_t i = 0, run; i < count; i += run) { // neighbours are computed in one go
      for (run = 0; i + run < count && keep[i + run]; run++)
        ;
      if (run > 0)
        dense_rows(p->kernels, y + i, READ(uint8_t, 3), in->dim[2], row + i, run, k,
                   READ(float, 2) + t * k);
      rescored += run;
      if (i + run < count)
        y[i + run++] = -INFINITY;
    }
  }
  atomic_fetch_add_explicit(p->screened, count * (r.end - r.begin), memory_order_relaxed);
  atomic_fetch_add_explicit(p->rescored, rescored, memory_order_relaxed);
}

size_t be_screened_items(const be_instruction *in) {
  return (in->dim[0] + SCREEN_ROWS - 1) / SCREEN_ROWS;
}

void be_run_screened_linear(const be_pass *p, const be_instruction *in, size_t item) {
  if (p->best > 0)
    run_screened_rows(p, in, item);
  else
    run_dense_item(p, in, item, READ(uint8_t, 3), NULL); // every logit
}
