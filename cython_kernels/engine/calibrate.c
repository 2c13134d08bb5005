// SPDX-License-Identifier: MIT
// Measuring reads, ternary products and heads on the pool (calibrate.h).
//
// The read is portable C: vector extensions give SSE2 or NEON code, and wider registers would gain
// nothing. Measured on Zen 5, GB/s of 16 / 32 / 64 byte loads: prefetching 41, 41, 40 on one
// thread and 51, 51, 51 on two; without 38, 42, 41 and 50, 51, 50.
#include "calibrate.h"

#include <stdlib.h>

#include "bitnet_edge.h"
#include "kernels.h"
#include "profile.h"
#include "program_operands.h"
#include "thread_pool.h"
#include "work_share.h"

enum {
  READ_ITEM = 1 << 20, // bytes
  LINE = 64,
  PREFETCH_BYTES = 4096, // ahead
  PANELS = 4,            // of one work item of a product, as in program_run.c
  TOKENS = 64
};

// Sixteen bytes at any address.
typedef uint64_t lanes __attribute__((vector_size(16), aligned(1), may_alias));

typedef struct reading {
  be_work_share *share;
  const uint8_t *buffer;
  size_t bytes;
  bool prefetch;
  _Atomic uint64_t sum; // so that no read can be left out
} reading;

static inline uint64_t sum_bytes(const uint8_t *x, size_t n, bool prefetch) {
  lanes a = {0}, b = {0}, c = {0}, d = {0};
  size_t i = 0;
  for (; i + LINE <= n; i += LINE) {
    if (prefetch)
      __builtin_prefetch(x + i + PREFETCH_BYTES);
    a += *(const lanes *)(x + i);
    b += *(const lanes *)(x + i + 16);
    c += *(const lanes *)(x + i + 32);
    d += *(const lanes *)(x + i + 48);
  }
  lanes all = a + b + c + d;
  uint64_t sum = all[0] + all[1];
  for (; i < n; i++)
    sum += x[i];
  return sum;
}

static void read_share(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  reading *r = context;
  size_t item;
  uint64_t sum = 0;
  if (thread == 0)
    be_work_begin(r->share, (r->bytes + READ_ITEM - 1) / READ_ITEM, n_threads);
  be_barrier_wait(barrier);
  while (be_work_take(r->share, thread, n_threads, &item)) {
    const uint8_t *x = r->buffer + item * READ_ITEM;
    size_t left = r->bytes - item * READ_ITEM, n = left < READ_ITEM ? left : READ_ITEM;
    sum += r->prefetch ? sum_bytes(x, n, true) : sum_bytes(x, n, false);
  }
  atomic_fetch_add_explicit(&r->sum, sum, memory_order_relaxed);
}

// Runs a job with a share of work of its own, and times it.
static be_status timed(be_job *job, void *context, be_work_share **share, uint32_t threads,
                       uint64_t *ns) {
  be_status status = be_pool_reserve(threads);
  if (status != BE_OK)
    return status;
  void *block = calloc(1, be_work_share_bytes(threads) + BE_WORK_LINE);
  if (!block)
    return BE_ERR_NO_MEMORY;
  *share = be_work_share_in(block);
  uint64_t begin = be_profile_now();
  be_pool_run(job, context, threads);
  *ns = be_profile_now() - begin;
  free(block);
  return BE_OK;
}

be_status be_measure_read(const uint8_t *buffer, size_t bytes, uint32_t threads, bool prefetch,
                          uint64_t *ns) {
  reading r = {.buffer = buffer, .bytes = bytes, .prefetch = prefetch};
  return timed(read_share, &r, &r.share, threads, ns);
}

void be_measure_clock(uint64_t cycles, uint64_t *ns) {
  size_t x = 1, y = 3;
  __asm__ volatile("" : "+r"(y)); // in a register, not an immediate: some CPUs merge those
  uint64_t begin = be_profile_now();
  for (uint64_t i = 0; i < cycles / 64; i++) {
#pragma GCC unroll 64
    for (int j = 0; j < 64; j++) {
      x += y;
      __asm__ volatile("" : "+r"(x)); // the compiler may not fold a sum that passes through
    }
  }
  *ns = be_profile_now() - begin;
}

typedef struct multiplying {
  be_work_share *share;
  const be_kernels *kernels;
  const uint8_t *buffer;
  int32_t *q_sum; // [m]; one block with
  int8_t *q;      // [m][k]
  be_ternary_work work;
  size_t panels, matrix_items; // of one matrix
  size_t matrices;
} multiplying;

static void multiply_item(const multiplying *x, size_t matrix, size_t panel, int32_t *acc) {
  const be_ternary_work *work = &x->work;
  size_t blocks = work->k / BE_BLOCK_K, stride = blocks * BE_BLOCK_BYTES;
  size_t panels = min_size(PANELS, x->panels - panel);
  const uint8_t *w = x->buffer + (matrix * x->panels + panel) * stride;
  if (work->m == 1) {
    x->kernels->ternary_gemv_i8(acc, w, stride, panels, blocks, x->q, x->q_sum[0]);
    return;
  }
  for (size_t t = 0; t < work->m; t += TOKENS)
    x->kernels->ternary_gemm_i8(acc, PANELS * BE_PANEL_ROWS, w, stride, panels, blocks,
                                x->q + t * work->k, work->k, x->q_sum + t,
                                min_size(TOKENS, work->m - t));
}

static void multiply_share(void *context, unsigned thread, unsigned n_threads,
                           be_barrier *barrier) {
  multiplying *x = context;
  _Alignas(64) int32_t acc[PANELS * BE_PANEL_ROWS * TOKENS];
  for (uint32_t pass = 0; pass < x->work.repeats; pass++) {
    size_t item;
    if (pass > 0)
      be_barrier_wait(barrier);
    if (thread == 0)
      be_work_begin(x->share, x->matrix_items * x->matrices, n_threads);
    be_barrier_wait(barrier);
    while (be_work_take(x->share, thread, n_threads, &item))
      multiply_item(x, item / x->matrix_items, item % x->matrix_items * PANELS, acc);
  }
}

static be_status prepare(multiplying *x, size_t bytes) {
  const be_ternary_work *work = &x->work;
  if (work->rows == 0 || work->rows % BE_PANEL_ROWS || work->rows > BE_MAX_DIMENSION ||
      work->k == 0 || work->k % BE_BLOCK_K || work->k > 1 << 16 || work->m == 0 || work->m > 4096 ||
      work->repeats == 0)
    return BE_ERR_ARGUMENT;
  x->panels = work->rows / BE_PANEL_ROWS;
  x->matrix_items = (x->panels + PANELS - 1) / PANELS;
  x->matrices = bytes / ((size_t)work->rows * work->k / 4);
  if (x->matrices == 0)
    return BE_ERR_ARGUMENT;
  size_t n = (size_t)work->m * work->k;
  x->q_sum = calloc(1, work->m * sizeof *x->q_sum + n);
  if (!x->q_sum)
    return BE_ERR_NO_MEMORY;
  x->q = (int8_t *)(x->q_sum + work->m);
  for (size_t i = 0; i < n; i++) {
    x->q[i] = (int8_t)(i * 37 % 255 - 127);
    x->q_sum[i / work->k] += x->q[i];
  }
  return BE_OK;
}

be_status be_measure_ternary(const uint8_t *buffer, size_t bytes, const be_ternary_work *work,
                             uint32_t threads, uint64_t *ns) {
  be_kernels scalar;
  multiplying x = {.kernels = be_engine_kernels(), .buffer = buffer, .work = *work};
  if (work->scalar) {
    be_kernels_init(&scalar, 1u << BE_ISA_scalar);
    x.kernels = &scalar;
  }
  be_status status = prepare(&x, bytes);
  if (status == BE_OK)
    status = timed(multiply_share, &x, &x.share, threads, ns);
  free(x.q_sum);
  return status;
}

// A head of k columns, read once: panels of 16 rows of int8 or int4 codes, or of bfloat16.
typedef struct projecting {
  be_work_share *share;
  const be_kernels *kernels;
  const uint8_t *buffer;
  const int16_t *q;     // [k padded]
  const int32_t *q_sum; // [k padded / 32]
  const float *x;       // [k]
  uint32_t k, bits;
  size_t panels, panel_bytes, item_panels;
} projecting;

static void project_share(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  projecting *p = context;
  size_t item, items = (p->panels + p->item_panels - 1) / p->item_panels;
  float y[BE_ITEM_PANELS * BE_HEAD_ROWS];
  if (thread == 0)
    be_work_begin(p->share, items, n_threads);
  be_barrier_wait(barrier);
  while (be_work_take(p->share, thread, n_threads, &item)) {
    size_t first = item * p->item_panels, n = min_size(p->item_panels, p->panels - first);
    const uint8_t *w = p->buffer + first * p->panel_bytes;
    if (p->bits == 16)
      p->kernels->dense_gemv_bf16(y, (const uint16_t *)w, n * BE_HEAD_ROWS, p->k, p->x);
    else if (p->bits == 8)
      p->kernels->head_gemv_i8(y, w, n, p->k, p->q, 1.0f);
    else
      p->kernels->head_gemv_i4(y, w, n, p->k, p->q, p->q_sum, 1.0f);
  }
}

be_status be_measure_head(const uint8_t *buffer, size_t bytes, uint32_t k, uint32_t bits,
                          uint32_t threads, uint64_t *ns) {
  if (k == 0 || k > 1 << 16 || (bits != 4 && bits != 8 && bits != 16))
    return BE_ERR_ARGUMENT;
  projecting p = {.kernels = be_engine_kernels(), .buffer = buffer, .k = k, .bits = bits};
  p.panel_bytes = bits == 16 ? (size_t)BE_HEAD_ROWS * k * 2 : (size_t)be_head_panel_bytes(bits, k);
  p.panels = bytes / p.panel_bytes;
  p.item_panels = BE_HEAD_ITEM_BYTES / p.panel_bytes;
  p.item_panels = p.item_panels < 1 ? 1 : min_size(p.item_panels, BE_ITEM_PANELS);
  if (p.panels == 0)
    return BE_ERR_ARGUMENT;
  size_t padded = (k + BE_WIDE_K - 1) / BE_WIDE_K * BE_WIDE_K;
  uint8_t *zeros = calloc(padded, sizeof *p.x + sizeof *p.q_sum + sizeof *p.q);
  if (!zeros)
    return BE_ERR_NO_MEMORY;
  p.x = (const float *)zeros;
  p.q_sum = (const int32_t *)(p.x + padded);
  p.q = (const int16_t *)(p.q_sum + padded);
  be_status status = timed(project_share, &p, &p.share, threads, ns);
  free(zeros);
  return status;
}
