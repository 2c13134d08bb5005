// SPDX-License-Identifier: MIT
// What each work item of each instruction computes (program_run.h).
//
// Which thread computes an item, and in how many pieces a run is cut, never changes a result: an
// item owns its output rows, integer sums are exact, and every float sum is inside one kernel call
// whose order is fixed.
#include "program_run.h"

#include <math.h>
#include <string.h>

#include "angles.h"
#include "head_row.h"
#include "head_screen.h"
#include "kernels.h"
#include "kv_cache.h"
#include "program.h"

enum {
  CACHE_LINE = 64,
  // One work item of a linear layer reads about this much weight: long enough to hide the taking,
  // short enough to balance cores of different speed.
  ITEM_BYTES = 32 * 1024,
  GEMV_MAX_PANELS = 16,
  // A head is far larger than all else: longer streams, still hundreds of items.
  HEAD_ITEM_BYTES = 128 * 1024,
  SCREEN_ROWS = 512, // rows of a screened head in one item: as many streams as it keeps
  GEMM_PANELS = 4,   // 64 rows x 64 tokens of int32 accumulators: 16 KB of stack
  GEMM_TOKENS = 64,
  ATTENTION_QUERIES = 32 // of one item, at most, if that is one token
};

// Row t of operand i: arena and inputs are indexed by token, outputs by output row.
typedef struct rows {
  uint32_t begin, end; // tokens this instruction works on
} rows;

static rows instruction_rows(const be_pass *p, const be_instruction *in) {
  bool tail = in->flags & BE_FLAG_OUTPUT_ROWS;
  return (rows){tail ? p->n_tokens - p->output_rows : 0, p->n_tokens};
}

static const void *resolve_read(const be_pass *p, uint64_t operand) {
  uint64_t offset = be_operand_offset(operand);
  switch (be_operand_region(operand)) {
  case BE_REGION_WEIGHTS:
    return p->program->weights + offset;
  case BE_REGION_ARENA:
    return p->arena + offset;
  case BE_REGION_STATE:
    return p->state + offset;
  case BE_REGION_INPUT:
    return p->inputs[be_operand_port(operand)];
  default:
    return NULL; // an absent optional operand
  }
}

// Start of row 0; for an output it lies before the buffer, so that token indices work for both.
static void *resolve_write(const be_pass *p, uint64_t operand, size_t row_bytes) {
  uint64_t offset = be_operand_offset(operand);
  switch (be_operand_region(operand)) {
  case BE_REGION_STATE:
    return p->state + offset;
  case BE_REGION_OUTPUT:
    return (void *)((uintptr_t)p->outputs[be_operand_port(operand)] -
                    (p->n_tokens - p->output_rows) * row_bytes);
  default:
    return p->arena + offset;
  }
}

#define READ(type, index) ((const type *)resolve_read(p, in->operand[index]))
#define WRITE(type, index, width)                                                                  \
  ((type *)resolve_write(p, in->operand[index], (size_t)(width) * sizeof(type)))

// Elements as float32, whatever the stored dtype.
static void widen_row(const be_kernels *k, float *y, const uint8_t *table, uint32_t dtype,
                      size_t row, size_t width) {
  const uint8_t *x = table + row * width * be_dtype_bytes(dtype);
  if (dtype == BE_F32)
    memcpy(y, x, width * sizeof *y);
  else if (dtype == BE_F16)
    k->f16_to_f32(y, (const uint16_t *)x, width);
  else
    k->bf16_to_f32(y, (const uint16_t *)x, width);
}

static void scale_row(float *y, size_t width, float multiplier) {
  if (multiplier != 1.0f)
    for (size_t i = 0; i < width; i++)
      y[i] *= multiplier;
}

// The id of token t. It was checked before the run, but in the caller's buffer: a thread that
// writes there meanwhile must not lead outside the table.
static size_t token_id(const be_pass *p, const be_instruction *in, size_t t) {
  uint32_t id = *(const volatile uint32_t *)&READ(uint32_t, 2)[t];
  return id < in->dim[1] ? id : 0;
}

static void run_embed(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  float *y = WRITE(float, 0, width) + t * width;
  widen_row(p->kernels, y, READ(uint8_t, 1), in->dim[2], token_id(p, in, t), width);
  scale_row(y, width, in->scalar[0]);
}

static void run_head_embed(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  float *y = WRITE(float, 0, width) + t * width;
  be_head_row(y, READ(uint8_t, 1), in->dim[2], token_id(p, in, t), width);
  scale_row(y, width, in->scalar[0]);
}

static void run_rms_norm(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  p->kernels->rms_norm_f32(WRITE(float, 0, width) + t * width, READ(float, 1) + t * width,
                           READ(float, 2), width, in->scalar[0]);
}

static void sum_groups(int32_t *sums, const int8_t *q, size_t groups, size_t columns) {
  for (size_t g = 0; g < groups; g++) {
    int32_t sum = 0;
    for (size_t i = 0; i < columns; i++)
      sum += q[g * columns + i];
    sums[g] = sum;
  }
}

static void run_quantize(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0], groups = in->dim[1], padded = be_round_up(width, BE_BLOCK_K);
  int8_t *q = WRITE(int8_t, 0, padded) + t * padded;
  float *s = WRITE(float, 1, 1) + t;
  int32_t *q_sum = WRITE(int32_t, 2, groups) + t * groups;
  const float *x = READ(float, 3) + t * width;
  if (in->opcode == BE_OP_quantize)
    p->kernels->quantize_i8(q, s, q_sum, x, width);
  else
    p->kernels->rms_norm_quantize_i8(q, s, q_sum, x, READ(float, 4), width, in->scalar[0]);
  if (groups > 1)
    sum_groups(q_sum, q, groups, width / groups);
}

static void run_quantize_wide(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0], padded = be_round_up(width, BE_WIDE_K);
  size_t groups = padded / BE_I4_GROUP_K;
  p->kernels->quantize_i16(WRITE(int16_t, 0, padded) + t * padded, WRITE(float, 1, 1) + t,
                           WRITE(int32_t, 2, groups) + t * groups, READ(float, 3) + t * width,
                           width, be_head_limit((uint32_t)width));
}

static void run_gated_activation(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  float *y = WRITE(float, 0, width) + t * width;
  const float *gate = READ(float, 1) + t * width, *up = READ(float, 2) + t * width;
  if (in->dim[1] == 0)
    p->kernels->relu2_mul_f32(y, gate, up, width);
  else
    p->kernels->silu_mul_f32(y, gate, up, width);
}

static void run_add(const be_pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  p->kernels->add_f32(WRITE(float, 0, width) + t * width, READ(float, 1) + t * width,
                      READ(float, 2) + t * width, width);
}

static void run_rope_angles(const be_pass *p, const be_instruction *in, size_t t) {
  size_t half = in->dim[0];
  float *y = WRITE(float, 0, 2 * half) + t * 2 * half;
  be_rope_angles(y, y + half, READ(float, 1), half, p->position + (uint32_t)t, in->scalar[0]);
}

static void run_rope(const be_pass *p, const be_instruction *in, size_t t) {
  size_t heads = in->dim[0], head_dim = in->dim[1], half = head_dim / 2;
  const float *x = READ(float, 1) + t * heads * head_dim;
  const float *angles = READ(float, 2) + t * head_dim;
  float *y = WRITE(float, 0, heads *head_dim) + t * heads * head_dim;
  for (size_t h = 0; h < heads; h++)
    p->kernels->rope_f32(y + h * head_dim, x + h * head_dim, angles, angles + half, half);
}

static be_kv_layout kv_layout(const be_pass *p, uint32_t dtype, uint32_t head_dim) {
  return be_kv_layout_of(dtype, head_dim, p->program->header.max_positions);
}

static void run_kv_append(const be_pass *p, const be_instruction *in, size_t t) {
  size_t heads = in->dim[0], head_dim = in->dim[1], half = head_dim / 2;
  const be_kv_layout layout = kv_layout(p, in->dim[2], in->dim[1]);
  uint8_t *cache = WRITE(uint8_t, 0, 0);
  const float *x = READ(float, 1) + t * heads * head_dim;
  const float *angles = READ(float, 2);
  if (angles)
    angles += t * head_dim;
  float rotated[BE_MAX_HEAD_DIM];
  for (size_t h = 0; h < heads; h++) {
    const float *head = x + h * head_dim;
    if (angles) {
      p->kernels->rope_f32(rotated, head, angles, angles + half, half);
      head = rotated;
    }
    be_kv_append(p->kernels, in->dim[2], &layout, cache + h * layout.head_bytes, p->position + t,
                 head, head_dim);
  }
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

// Tokens of one item: their queries share each row of the cache.
static size_t attention_item_tokens(const be_instruction *in) {
  size_t group = in->dim[0] / in->dim[1];
  return group < ATTENTION_QUERIES ? ATTENTION_QUERIES / group : 1;
}

static void run_attention(const be_pass *p, const be_instruction *in, size_t item) {
  size_t heads = in->dim[0], kv_heads = in->dim[1], head_dim = in->dim[2];
  rows r = instruction_rows(p, in);
  size_t tokens = attention_item_tokens(in), kv_head = item % kv_heads, group = heads / kv_heads;
  size_t t = r.begin + item / kv_heads * tokens, position = p->position + t;
  const be_kv_layout layout = kv_layout(p, in->dim[3], in->dim[2]);
  size_t at = (t * heads + kv_head * group) * head_dim, cache_at = kv_head * layout.head_bytes;
  tokens = min_size(tokens, r.end - t);
  const be_kv_segment all =
      be_kv_segment_of(&layout, READ(uint8_t, 2) + cache_at, READ(uint8_t, 3) + cache_at, 0, 0,
                       position + tokens, READ(float, 1) + at);
  const be_attention a = {.out = WRITE(float, 0, heads *head_dim) + at,
                          .stride = heads * head_dim,
                          .n_tokens = tokens,
                          .n_heads = group,
                          .head_dim = head_dim,
                          .position = position,
                          .scale = in->scalar[0],
                          .segments = &all,
                          .n_segments = 1};
  be_kv_attend(p->kernels, in->dim[3], &a);
}

static size_t ternary_panels(const be_instruction *in) {
  return (in->dim[0] + BE_PANEL_ROWS - 1) / BE_PANEL_ROWS;
}

static size_t ternary_item_panels(const be_instruction *in, size_t tokens) {
  if (tokens > 1)
    return GEMM_PANELS;
  size_t panel_bytes = be_round_up(in->dim[1], BE_BLOCK_K) * (BE_BLOCK_BYTES / BE_BLOCK_K);
  size_t panels = ITEM_BYTES / panel_bytes;
  return panels < 1 ? 1 : min_size(panels, GEMV_MAX_PANELS);
}

// Scales of `count` rows from `row` on, one group, as float32.
static const float *group_scales(const be_pass *p, const be_instruction *in, size_t group,
                                 size_t row, size_t count, float *buffer) {
  size_t at = group * in->dim[0] + row;
  if (in->dim[3] == BE_F32)
    return READ(float, 6) + at;
  p->kernels->f16_to_f32(buffer, READ(uint16_t, 6) + at, count);
  return buffer;
}

static void finish_scaled(float *y, size_t count, float s, float w_scale, const float *bias) {
  for (size_t i = 0; i < count; i++) {
    float value = (y[i] / s) * w_scale;
    y[i] = bias ? value + bias[i] : value;
  }
}

// Panels of a matrix with scales for each row, or for groups of a row's columns: the exact sums of
// each group, scaled and added in the order of the groups.
static void run_scaled_panels(const be_pass *p, const be_instruction *in, const uint8_t *w,
                              size_t panels, size_t row, size_t count) {
  rows r = instruction_rows(p, in);
  size_t n_rows = in->dim[0], groups = in->dim[2], padded_k = be_round_up(in->dim[1], BE_BLOCK_K);
  size_t panel_bytes = padded_k / BE_BLOCK_K * BE_BLOCK_BYTES, group_k = padded_k / groups;
  size_t group_blocks = group_k / BE_BLOCK_K;
  const int8_t *q = READ(int8_t, 2);
  const float *s = READ(float, 3), *bias = READ(float, 5);
  const int32_t *q_sum = READ(int32_t, 4);
  float *y = WRITE(float, 0, n_rows), scales[GEMV_MAX_PANELS * BE_PANEL_ROWS];
  _Alignas(CACHE_LINE) int32_t acc[GEMM_PANELS * BE_PANEL_ROWS * GEMM_TOKENS];
  size_t stride = panels * BE_PANEL_ROWS;
  for (size_t t = r.begin; t < r.end; t += GEMM_TOKENS) {
    size_t m = min_size(GEMM_TOKENS, r.end - t);
    for (size_t i = 0; i < m; i++)
      memset(y + (t + i) * n_rows + row, 0, count * sizeof *y);
    for (size_t g = 0; g < groups; g++) {
      int32_t sums[GEMM_TOKENS];
      for (size_t i = 0; i < m; i++)
        sums[i] = q_sum[(t + i) * groups + g];
      const uint8_t *group_w = w + g * group_blocks * BE_BLOCK_BYTES;
      const int8_t *group_q = q + t * padded_k + g * group_k;
      if (m == 1)
        p->kernels->ternary_gemv_i8(acc, group_w, panel_bytes, panels, group_blocks, group_q,
                                    *sums);
      else
        p->kernels->ternary_gemm_i8(acc, stride, group_w, panel_bytes, panels, group_blocks,
                                    group_q, padded_k, sums, m);
      const float *scale = group_scales(p, in, g, row, count, scales);
      for (size_t i = 0; i < m; i++)
        p->kernels->scale_add_f32(y + (t + i) * n_rows + row, acc + i * stride, scale, count);
    }
    for (size_t i = 0; i < m; i++)
      finish_scaled(y + (t + i) * n_rows + row, count, s[t + i], in->scalar[0],
                    bias ? bias + row : NULL);
  }
}

static void run_ternary_linear(const be_pass *p, const be_instruction *in, size_t item) {
  rows r = instruction_rows(p, in);
  size_t n_rows = in->dim[0], padded_k = be_round_up(in->dim[1], BE_BLOCK_K);
  size_t k_blocks = padded_k / BE_BLOCK_K, panel_bytes = k_blocks * BE_BLOCK_BYTES;
  size_t item_panels = ternary_item_panels(in, r.end - r.begin);
  size_t panel = item * item_panels, row = panel * BE_PANEL_ROWS;
  size_t panels = min_size(item_panels, ternary_panels(in) - panel);
  size_t count = min_size(panels * BE_PANEL_ROWS, n_rows - row);
  const uint8_t *w = READ(uint8_t, 1) + panel * panel_bytes;
  const int8_t *q = READ(int8_t, 2);
  const float *s = READ(float, 3), *bias = READ(float, 5);
  const int32_t *q_sum = READ(int32_t, 4);
  float *y = WRITE(float, 0, n_rows);
  if (in->operand[6] != 0) {
    run_scaled_panels(p, in, w, panels, row, count);
    return;
  }
  if (bias)
    bias += row;
  _Alignas(CACHE_LINE) int32_t acc[GEMM_PANELS * BE_PANEL_ROWS * GEMM_TOKENS];
  if (r.end - r.begin == 1) {
    size_t t = r.begin;
    p->kernels->ternary_gemv_i8(acc, w, panel_bytes, panels, k_blocks, q + t * padded_k, q_sum[t]);
    p->kernels->dequantize_f32(y + t * n_rows + row, acc, count, s[t], in->scalar[0], bias);
    return;
  }
  const size_t stride = GEMM_PANELS * BE_PANEL_ROWS;
  for (size_t t = r.begin; t < r.end; t += GEMM_TOKENS) {
    size_t m = min_size(GEMM_TOKENS, r.end - t);
    p->kernels->ternary_gemm_i8(acc, stride, w, panel_bytes, panels, k_blocks, q + t * padded_k,
                                padded_k, q_sum + t, m);
    for (size_t i = 0; i < m; i++)
      p->kernels->dequantize_f32(y + (t + i) * n_rows + row, acc + i * stride, count, s[t + i],
                                 in->scalar[0], bias);
  }
}

static size_t dense_item_rows(const be_instruction *in) {
  size_t rows_per_item = ITEM_BYTES / (in->dim[1] * be_dtype_bytes(in->dim[2]));
  return rows_per_item < 8 ? 8 : rows_per_item;
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

static void run_dense_linear(const be_pass *p, const be_instruction *in, size_t item) {
  rows r = instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1];
  size_t row = item * dense_item_rows(in), count = min_size(dense_item_rows(in), n_rows - row);
  const float *bias = READ(float, 3);
  for (size_t t = r.begin; t < r.end; t++) {
    float *y = WRITE(float, 0, n_rows) + t * n_rows + row;
    dense_rows(p->kernels, y, READ(uint8_t, 1), in->dim[2], row, count, k, READ(float, 2) + t * k);
    if (bias)
      p->kernels->add_f32(y, y, bias + row, count);
  }
}

static size_t head_item_panels(const be_instruction *in) {
  size_t panels = HEAD_ITEM_BYTES / be_head_panel_bytes(in->dim[2], in->dim[1]);
  return panels < 1 ? 1 : min_size(panels, GEMV_MAX_PANELS);
}

static void run_head_linear(const be_pass *p, const be_instruction *in, size_t item) {
  rows r = instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1], padded = be_round_up(k, BE_WIDE_K);
  size_t groups = padded / BE_I4_GROUP_K, panels = head_item_panels(in);
  size_t row = item * panels * BE_HEAD_ROWS;
  size_t count = min_size(panels * BE_HEAD_ROWS, n_rows - row);
  const uint8_t *w = READ(uint8_t, 1) + item * panels * be_head_panel_bytes(in->dim[2], k);
  const float *s = READ(float, 3), *bias = READ(float, 5);
  panels = (count + BE_HEAD_ROWS - 1) / BE_HEAD_ROWS;
  for (size_t t = r.begin; t < r.end; t++) {
    const int16_t *q = READ(int16_t, 2) + t * padded;
    float rows_of_panels[GEMV_MAX_PANELS * BE_HEAD_ROWS]; // y may end within the last panel
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

static void run_screen_limits(const be_pass *p, const be_instruction *in, size_t t) {
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

// Every logit, as run_dense_linear.
static void run_whole_rows(const be_pass *p, const be_instruction *in, size_t item) {
  rows r = instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1];
  size_t row = item * dense_item_rows(in), count = min_size(dense_item_rows(in), n_rows - row);
  for (size_t t = r.begin; t < r.end; t++)
    dense_rows(p->kernels, WRITE(float, 0, n_rows) + t * n_rows + row, READ(uint8_t, 3), in->dim[2],
               row, count, k, READ(float, 2) + t * k);
}

static void run_screened_rows(const be_pass *p, const be_instruction *in, size_t item) {
  rows r = instruction_rows(p, in);
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

// Independent pieces of work in one instruction of this pass.
size_t be_item_count(const be_pass *p, const be_instruction *in) {
  rows r = instruction_rows(p, in);
  size_t tokens = r.end - r.begin;
  switch (in->opcode) {
  case BE_OP_ternary_linear: {
    size_t panels = ternary_item_panels(in, tokens);
    return (ternary_panels(in) + panels - 1) / panels;
  }
  case BE_OP_dense_linear:
    return (in->dim[0] + dense_item_rows(in) - 1) / dense_item_rows(in);
  case BE_OP_screen_limits:
    return p->best > 0 ? tokens : 0;
  case BE_OP_screened_linear: {
    size_t rows_of_item = p->best > 0 ? SCREEN_ROWS : dense_item_rows(in);
    return (in->dim[0] + rows_of_item - 1) / rows_of_item;
  }
  case BE_OP_screen_linear:
    if (p->best == 0)
      return 0;
    // fall through
  case BE_OP_head_linear: {
    size_t rows_of_item = head_item_panels(in) * BE_HEAD_ROWS;
    return (in->dim[0] + rows_of_item - 1) / rows_of_item;
  }
  case BE_OP_attention:
    return (tokens + attention_item_tokens(in) - 1) / attention_item_tokens(in) * in->dim[1];
  default:
    return tokens;
  }
}

void be_run_item(const be_pass *p, const be_instruction *in, size_t item) {
  size_t t = instruction_rows(p, in).begin + item; // for the ops whose item is a token
  switch ((be_opcode)in->opcode) {
  case BE_OP_embed:
    run_embed(p, in, t);
    break;
  case BE_OP_rms_norm:
    run_rms_norm(p, in, t);
    break;
  case BE_OP_quantize:
  case BE_OP_rms_norm_quantize:
    run_quantize(p, in, t);
    break;
  case BE_OP_ternary_linear:
    run_ternary_linear(p, in, item);
    break;
  case BE_OP_dense_linear:
    run_dense_linear(p, in, item);
    break;
  case BE_OP_gated_activation:
    run_gated_activation(p, in, t);
    break;
  case BE_OP_add:
    run_add(p, in, t);
    break;
  case BE_OP_rope_angles:
    run_rope_angles(p, in, t);
    break;
  case BE_OP_rope:
    run_rope(p, in, t);
    break;
  case BE_OP_kv_append:
    run_kv_append(p, in, t);
    break;
  case BE_OP_attention:
    run_attention(p, in, item);
    break;
  case BE_OP_quantize_wide:
    run_quantize_wide(p, in, t);
    break;
  case BE_OP_head_linear:
    run_head_linear(p, in, item);
    break;
  case BE_OP_head_embed:
    run_head_embed(p, in, t);
    break;
  case BE_OP_screen_linear:
    run_head_linear(p, in, item);
    break;
  case BE_OP_screen_limits:
    run_screen_limits(p, in, t);
    break;
  case BE_OP_screened_linear:
    if (p->best > 0)
      run_screened_rows(p, in, item);
    else
      run_whole_rows(p, in, item);
    break;
  }
}
