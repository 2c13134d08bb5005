// SPDX-License-Identifier: MIT
// What each work item of each instruction computes (program_run.h).
//
// Which thread computes an item, and in how many pieces a run is cut, never changes a result: an
// item owns its output rows, integer sums are exact, and every float sum is inside one kernel call
// whose order is fixed.
#include "program_run.h"

#include <string.h>

#include "angles.h"
#include "head_row.h"
#include "kernels.h"
#include "kv_cache.h"
#include "program.h"
#include "program_operands.h"
#include "program_run_head.h"

enum {
  CACHE_LINE = 64,
  GEMM_PANELS = 4, // 64 rows x 64 tokens of int32 accumulators: 16 KB of stack
  GEMM_TOKENS = 64,
  ATTENTION_QUERIES = 32 // of one item, at most, if that is one token
};

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
  uint32_t position = in->dim[1] > 0 ? in->dim[1] - 1 : p->position + (uint32_t)t;
  be_rope_angles(y, y + half, READ(float, 1), half, position, in->scalar[0]);
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
  return be_kv_layout_of(dtype, head_dim, be_kv_rows(&p->program->header));
}

// Where positions lie in a cache: row `sinks + position % rows`, and the sinks in the rows before
// that too. Without a window the ring never wraps.
typedef struct kv_ring {
  size_t sinks, rows;
} kv_ring;

static kv_ring ring_of(const be_pass *p) {
  const be_program_header *header = &p->program->header;
  return (kv_ring){header->sinks, be_kv_rows(header) - header->sinks};
}

static void run_kv_append(const be_pass *p, const be_instruction *in, size_t t) {
  size_t heads = in->dim[0], head_dim = in->dim[1], half = head_dim / 2;
  const be_kv_layout layout = kv_layout(p, in->dim[2], in->dim[1]);
  uint8_t *cache = WRITE(uint8_t, 0, 0);
  const float *x = READ(float, 1) + t * heads * head_dim;
  const float *angles = READ(float, 2);
  if (angles)
    angles += t * head_dim;
  const kv_ring ring = ring_of(p);
  size_t position = p->position + t;
  float rotated[BE_MAX_HEAD_DIM];
  for (size_t h = 0; h < heads; h++) {
    const float *head = x + h * head_dim;
    if (angles) {
      p->kernels->rope_f32(rotated, head, angles, angles + half, half);
      head = rotated;
    }
    uint8_t *rows = cache + h * layout.head_bytes;
    be_kv_append(p->kernels, in->dim[2], &layout, rows, ring.sinks + position % ring.rows, head,
                 head_dim);
    if (position < ring.sinks)
      be_kv_append(p->kernels, in->dim[2], &layout, rows, position, head, head_dim);
  }
}

// Tokens of one item: their queries share each row of the cache.
static size_t attention_item_tokens(const be_instruction *in) {
  size_t group = in->dim[0] / in->dim[1];
  return group < ATTENTION_QUERIES ? ATTENTION_QUERIES / group : 1;
}

enum { RING_PARTS = 2 }; // a window of a ring lies in one piece or wraps once

// Appends the segments of positions first .. end - 1, split where the ring wraps.
static size_t ring_segments(be_kv_segment *segments, kv_ring ring, const be_kv_layout *layout,
                            const uint8_t *k, const uint8_t *v, size_t first, size_t end,
                            const float *q) {
  size_t count = 0;
  while (first < end) {
    size_t stop = min_size(end, (first / ring.rows + 1) * ring.rows);
    segments[count++] =
        be_kv_segment_of(layout, k, v, ring.sinks + first % ring.rows, first, stop, q);
    first = stop;
  }
  return count;
}

// Tokens t .. of one item, all of them before the window cuts anything off, or all after.
static void attend(const be_pass *p, const be_instruction *in, size_t t, size_t tokens,
                   size_t kv_head) {
  size_t heads = in->dim[0], kv_heads = in->dim[1], head_dim = in->dim[2], group = heads / kv_heads;
  const be_kv_layout layout = kv_layout(p, in->dim[3], in->dim[2]);
  const be_program_header *header = &p->program->header;
  size_t position = p->position + t, end = position + tokens;
  size_t at = (t * heads + kv_head * group) * head_dim, cache_at = kv_head * layout.head_bytes;
  const uint8_t *k = READ(uint8_t, 2) + cache_at, *v = READ(uint8_t, 3) + cache_at;
  const float *q = READ(float, 1) + at, *q_sinks = READ(float, 4);
  const kv_ring ring = ring_of(p);
  be_kv_segment segments[1 + RING_PARTS];
  size_t count = 0, window = header->window, sinks = header->sinks;
  if (window == 0 || position < sinks + window) {
    count = ring_segments(segments, ring, &layout, k, v, 0, end, q);
  } else {
    if (sinks > 0)
      segments[count++] = be_kv_segment_of(&layout, k, v, 0, 0, sinks, q_sinks ? q_sinks + at : q);
    size_t first = count;
    count += ring_segments(segments + count, ring, &layout, k, v, position + 1 - window, end, q);
    for (; first < count; first++)
      segments[first].window = window;
  }
  const be_attention a = {.out = WRITE(float, 0, heads *head_dim) + at,
                          .stride = heads * head_dim,
                          .n_tokens = tokens,
                          .n_heads = group,
                          .head_dim = head_dim,
                          .position = position,
                          .scale = in->scalar[0],
                          .segments = segments,
                          .n_segments = count};
  be_kv_attend(p->kernels, in->dim[3], &a);
}

static void run_attention(const be_pass *p, const be_instruction *in, size_t item) {
  size_t kv_heads = in->dim[1], tokens = attention_item_tokens(in), kv_head = item % kv_heads;
  be_rows r = be_instruction_rows(p, in);
  size_t t = r.begin + item / kv_heads * tokens, end = min_size(t + tokens, r.end);
  const be_program_header *header = &p->program->header;
  size_t whole = (size_t)header->sinks + header->window; // positions that see all before them
  if (header->window > 0 && p->position + t < whole && p->position + end > whole) {
    size_t cut = whole - p->position;
    attend(p, in, t, cut - t, kv_head);
    t = cut;
  }
  attend(p, in, t, end - t, kv_head);
}

static size_t ternary_panels(const be_instruction *in) {
  return (in->dim[0] + BE_PANEL_ROWS - 1) / BE_PANEL_ROWS;
}

static size_t ternary_item_panels(const be_instruction *in, size_t tokens) {
  if (tokens > 1)
    return GEMM_PANELS;
  size_t panel_bytes = be_round_up(in->dim[1], BE_BLOCK_K) * (BE_BLOCK_BYTES / BE_BLOCK_K);
  size_t panels = BE_ITEM_BYTES / panel_bytes;
  return panels < 1 ? 1 : min_size(panels, BE_ITEM_PANELS);
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
  be_rows r = be_instruction_rows(p, in);
  size_t n_rows = in->dim[0], groups = in->dim[2], padded_k = be_round_up(in->dim[1], BE_BLOCK_K);
  size_t panel_bytes = padded_k / BE_BLOCK_K * BE_BLOCK_BYTES, group_k = padded_k / groups;
  size_t group_blocks = group_k / BE_BLOCK_K;
  const int8_t *q = READ(int8_t, 2);
  const float *s = READ(float, 3), *bias = READ(float, 5);
  const int32_t *q_sum = READ(int32_t, 4);
  float *y = WRITE(float, 0, n_rows), scales[BE_ITEM_PANELS * BE_PANEL_ROWS];
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
  be_rows r = be_instruction_rows(p, in);
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

// Independent pieces of work in one instruction of this pass.
size_t be_item_count(const be_pass *p, const be_instruction *in) {
  be_rows r = be_instruction_rows(p, in);
  size_t tokens = r.end - r.begin;
  switch (in->opcode) {
  case BE_OP_ternary_linear: {
    size_t panels = ternary_item_panels(in, tokens);
    return (ternary_panels(in) + panels - 1) / panels;
  }
  case BE_OP_dense_linear:
    return be_dense_items(in);
  case BE_OP_head_linear:
    return be_head_items(in);
  case BE_OP_screen_linear:
    return p->best > 0 ? be_head_items(in) : 0;
  case BE_OP_screen_limits:
    return p->best > 0 ? tokens : 0;
  case BE_OP_screened_linear:
    return p->best > 0 ? be_screened_items(in) : be_dense_items(in);
  case BE_OP_attention:
    return (tokens + attention_item_tokens(in) - 1) / attention_item_tokens(in) * in->dim[1];
  default:
    return tokens;
  }
}

void be_run_item(const be_pass *p, const be_instruction *in, size_t item) {
  size_t t = be_instruction_rows(p, in).begin + item; // for the ops whose item is a token
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
    be_run_dense_linear(p, in, item);
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
    be_run_head_linear(p, in, item);
    break;
  case BE_OP_head_embed:
    run_head_embed(p, in, t);
    break;
  case BE_OP_screen_linear:
    be_run_head_linear(p, in, item);
    break;
  case BE_OP_screen_limits:
    be_run_screen_limits(p, in, t);
    break;
  case BE_OP_screened_linear:
    be_run_screened_linear(p, in, item);
    break;
  }
}
