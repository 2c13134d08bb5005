// SPDX-License-Identifier: MIT
// Executes a verified program: every phase's work items are shared out among the threads
// (work_share.h), a barrier separates phases that are shared.
//
// Which thread computes an item, and in how many pieces a run is cut, never changes a result: an
// item owns its output rows, integer sums are exact, and every float sum is inside one kernel call
// whose order is fixed.
#include <stdlib.h>
#include <string.h>

#include "angles.h"
#include "head_row.h"
#include "kernels.h"
#include "kv_cache.h"
#include "profile.h"
#include "program.h"
#include "thread_pool.h"
#include "work_share.h"

enum {
  CACHE_LINE = 64,
  // One work item of a linear layer reads about this much weight: long enough to hide the taking,
  // short enough to balance cores of different speed.
  ITEM_BYTES = 32 * 1024,
  GEMV_MAX_PANELS = 16,
  // A head is far larger than all else: longer streams, still hundreds of items.
  HEAD_ITEM_BYTES = 128 * 1024,
  GEMM_PANELS = 4, // 64 rows x 64 tokens of int32 accumulators: 16 KB of stack
  GEMM_TOKENS = 64
};

struct be_session {
  const be_program *program;
  uint8_t *arena, *state;
  void *arena_block, *state_block; // as allocated, before alignment
  be_work_share *share;            // of the phase that is running
  void *share_block;
  be_profile *profile; // NULL: not recorded
  uint32_t threads;
  uint32_t valid_positions;
};

// One forward pass.
typedef struct pass {
  const be_session *session;
  const be_kernels *kernels;
  const void *const *inputs;
  void *const *outputs;
  uint32_t n_tokens, position, output_rows;
} pass;

// Row t of operand i: arena and inputs are indexed by token, outputs by output row.
typedef struct rows {
  uint32_t begin, end; // tokens this instruction works on
} rows;

static be_kernels dispatch; // set by be_engine_init before the first run

be_status be_engine_init(const char *name) {
  uint32_t mask = be_cpu_detect();
  if (name) {
    be_status status = be_cpu_cap(name, mask, &mask);
    if (status != BE_OK)
      return status;
  }
  be_kernels_init(&dispatch, mask);
  return BE_OK;
}

const be_kernels *be_engine_kernels(void) { return &dispatch; }

static rows instruction_rows(const pass *p, const be_instruction *in) {
  bool tail = in->flags & BE_FLAG_OUTPUT_ROWS;
  return (rows){tail ? p->n_tokens - p->output_rows : 0, p->n_tokens};
}

static const void *resolve_read(const pass *p, uint64_t operand) {
  uint64_t offset = be_operand_offset(operand);
  switch (be_operand_region(operand)) {
  case BE_REGION_WEIGHTS:
    return p->session->program->weights + offset;
  case BE_REGION_ARENA:
    return p->session->arena + offset;
  case BE_REGION_STATE:
    return p->session->state + offset;
  case BE_REGION_INPUT:
    return p->inputs[be_operand_port(operand)];
  default:
    return NULL; // an absent optional operand
  }
}

// Start of row 0; for an output it lies before the buffer, so that token indices work for both.
static void *resolve_write(const pass *p, uint64_t operand, size_t row_bytes) {
  uint64_t offset = be_operand_offset(operand);
  switch (be_operand_region(operand)) {
  case BE_REGION_STATE:
    return p->session->state + offset;
  case BE_REGION_OUTPUT:
    return (void *)((uintptr_t)p->outputs[be_operand_port(operand)] -
                    (p->n_tokens - p->output_rows) * row_bytes);
  default:
    return p->session->arena + offset;
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

static void run_embed(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  float *y = WRITE(float, 0, width) + t * width;
  widen_row(p->kernels, y, READ(uint8_t, 1), in->dim[2], (size_t)READ(int32_t, 2)[t], width);
  scale_row(y, width, in->scalar[0]);
}

static void run_head_embed(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  float *y = WRITE(float, 0, width) + t * width;
  be_head_row(y, READ(uint8_t, 1), in->dim[2], (size_t)READ(int32_t, 2)[t], width);
  scale_row(y, width, in->scalar[0]);
}

static void run_rms_norm(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  p->kernels->rms_norm_f32(WRITE(float, 0, width) + t * width, READ(float, 1) + t * width,
                           READ(float, 2), width, in->scalar[0]);
}

static void run_quantize(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0], padded = be_round_up(width, BE_BLOCK_K);
  int8_t *q = WRITE(int8_t, 0, padded) + t * padded;
  float *s = WRITE(float, 1, 1) + t;
  int32_t *q_sum = WRITE(int32_t, 2, 1) + t;
  const float *x = READ(float, 3) + t * width;
  if (in->opcode == BE_OP_quantize)
    p->kernels->quantize_i8(q, s, q_sum, x, width);
  else
    p->kernels->rms_norm_quantize_i8(q, s, q_sum, x, READ(float, 4), width, in->scalar[0]);
}

static void run_quantize_wide(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0], padded = be_round_up(width, BE_WIDE_K);
  size_t groups = padded / BE_I4_GROUP_K;
  p->kernels->quantize_i16(WRITE(int16_t, 0, padded) + t * padded, WRITE(float, 1, 1) + t,
                           WRITE(int32_t, 2, groups) + t * groups, READ(float, 3) + t * width,
                           width, be_head_limit((uint32_t)width));
}

static void run_gated_activation(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  float *y = WRITE(float, 0, width) + t * width;
  const float *gate = READ(float, 1) + t * width, *up = READ(float, 2) + t * width;
  if (in->dim[1] == 0)
    p->kernels->relu2_mul_f32(y, gate, up, width);
  else
    p->kernels->silu_mul_f32(y, gate, up, width);
}

static void run_add(const pass *p, const be_instruction *in, size_t t) {
  size_t width = in->dim[0];
  p->kernels->add_f32(WRITE(float, 0, width) + t * width, READ(float, 1) + t * width,
                      READ(float, 2) + t * width, width);
}

static void run_rope_angles(const pass *p, const be_instruction *in, size_t t) {
  size_t half = in->dim[0];
  float *y = WRITE(float, 0, 2 * half) + t * 2 * half;
  be_rope_angles(y, y + half, READ(float, 1), half, p->position + (uint32_t)t, in->scalar[0]);
}

static void run_rope(const pass *p, const be_instruction *in, size_t t) {
  size_t heads = in->dim[0], head_dim = in->dim[1], half = head_dim / 2;
  const float *x = READ(float, 1) + t * heads * head_dim;
  const float *angles = READ(float, 2) + t * head_dim;
  float *y = WRITE(float, 0, heads *head_dim) + t * heads * head_dim;
  for (size_t h = 0; h < heads; h++)
    p->kernels->rope_f32(y + h * head_dim, x + h * head_dim, angles, angles + half, half);
}

static be_kv_layout kv_layout(const pass *p, uint32_t dtype, uint32_t head_dim) {
  return be_kv_layout_of(dtype, head_dim, p->session->program->header.max_positions);
}

static void run_kv_append(const pass *p, const be_instruction *in, size_t t) {
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

static void run_attention(const pass *p, const be_instruction *in, size_t item) {
  size_t heads = in->dim[0], kv_heads = in->dim[1], head_dim = in->dim[2];
  const be_kv_layout layout = kv_layout(p, in->dim[3], in->dim[2]);
  size_t t = instruction_rows(p, in).begin + item / kv_heads, kv_head = item % kv_heads;
  size_t group = heads / kv_heads, n_keys = p->position + t + 1;
  size_t at = (t * heads + kv_head * group) * head_dim;
  size_t cache_at = kv_head * layout.head_bytes;
  be_kv_attend(p->kernels, in->dim[3], &layout, WRITE(float, 0, heads *head_dim) + at,
               READ(float, 1) + at, READ(uint8_t, 2) + cache_at, READ(uint8_t, 3) + cache_at, group,
               n_keys, head_dim, in->scalar[0]);
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

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

static void run_ternary_linear(const pass *p, const be_instruction *in, size_t item) {
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

static void run_dense_linear(const pass *p, const be_instruction *in, size_t item) {
  rows r = instruction_rows(p, in);
  size_t n_rows = in->dim[0], k = in->dim[1];
  size_t row = item * dense_item_rows(in), count = min_size(dense_item_rows(in), n_rows - row);
  const uint8_t *w = READ(uint8_t, 1) + row * k * be_dtype_bytes(in->dim[2]);
  const float *bias = READ(float, 3);
  for (size_t t = r.begin; t < r.end; t++) {
    const float *x = READ(float, 2) + t * k;
    float *y = WRITE(float, 0, n_rows) + t * n_rows + row;
    if (in->dim[2] == BE_F32)
      p->kernels->dense_gemv_f32(y, (const float *)w, count, k, x);
    else if (in->dim[2] == BE_F16)
      p->kernels->dense_gemv_f16(y, (const uint16_t *)w, count, k, x);
    else
      p->kernels->dense_gemv_bf16(y, (const uint16_t *)w, count, k, x);
    if (bias)
      p->kernels->add_f32(y, y, bias + row, count);
  }
}

static size_t head_item_panels(const be_instruction *in) {
  size_t panels = HEAD_ITEM_BYTES / be_head_panel_bytes(in->dim[2], in->dim[1]);
  return panels < 1 ? 1 : min_size(panels, GEMV_MAX_PANELS);
}

static void run_head_linear(const pass *p, const be_instruction *in, size_t item) {
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

// Independent pieces of work in one instruction of this pass.
static size_t item_count(const pass *p, const be_instruction *in) {
  rows r = instruction_rows(p, in);
  size_t tokens = r.end - r.begin;
  switch (in->opcode) {
  case BE_OP_ternary_linear: {
    size_t panels = ternary_item_panels(in, tokens);
    return (ternary_panels(in) + panels - 1) / panels;
  }
  case BE_OP_dense_linear:
    return (in->dim[0] + dense_item_rows(in) - 1) / dense_item_rows(in);
  case BE_OP_head_linear: {
    size_t rows_of_item = head_item_panels(in) * BE_HEAD_ROWS;
    return (in->dim[0] + rows_of_item - 1) / rows_of_item;
  }
  case BE_OP_attention:
    return tokens * in->dim[1];
  default:
    return tokens;
  }
}

static void run_item(const pass *p, const be_instruction *in, size_t item) {
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
  }
}

// The phases to run: all, or those before the tail when no output row is wanted.
static bool phase_wanted(const pass *p, uint32_t phase) {
  const be_program *program = p->session->program;
  if (phase == program->phase_count)
    return false;
  const be_instruction *first = &program->instructions[program->phase_begin[phase]];
  return p->output_rows > 0 || !(first->flags & BE_FLAG_OUTPUT_ROWS);
}

static void run_whole_phase(const pass *p, uint32_t phase, unsigned thread) {
  const be_program *program = p->session->program;
  be_profile *profile = p->session->profile;
  for (uint32_t i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++) {
    size_t count = item_count(p, &program->instructions[i]);
    uint64_t begin = profile ? be_profile_now() : 0;
    for (size_t item = 0; item < count; item++)
      run_item(p, &program->instructions[i], item);
    if (profile)
      be_profile_add(profile, thread, i, begin);
  }
}

static void run_alone(const pass *p) {
  for (uint32_t phase = 0; phase_wanted(p, phase); phase++)
    run_whole_phase(p, phase, 0);
}

// Items are numbered through the phase's instructions.
static size_t phase_items(const pass *p, uint32_t phase) {
  const be_program *program = p->session->program;
  size_t total = 0;
  for (uint32_t i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++)
    total += item_count(p, &program->instructions[i]);
  return total;
}

// Takes items of the phase until none is left.
static void run_phase_share(const pass *p, uint32_t phase, unsigned thread, unsigned n_threads) {
  const be_program *program = p->session->program;
  be_profile *profile = p->session->profile;
  uint32_t i = program->phase_begin[phase];
  size_t item, first = 0, count = item_count(p, &program->instructions[i]); // of instruction i
  uint64_t begin = 0; // of this thread's share of instruction i, when that is recorded
  while (be_work_take(p->session->share, thread, n_threads, &item)) {
    if (item - first >= count) { // also when item < first
      if (begin)
        be_profile_add(profile, thread, i, begin);
      begin = 0;
      if (item < first) {
        i = program->phase_begin[phase];
        first = 0;
        count = item_count(p, &program->instructions[i]);
      }
      while (item - first >= count) {
        first += count;
        count = item_count(p, &program->instructions[++i]);
      }
    }
    if (profile && !begin)
      begin = be_profile_now();
    run_item(p, &program->instructions[i], item - first);
  }
  if (begin)
    be_profile_add(profile, thread, i, begin);
}

// The first phase from `phase` on with an instruction that can be shared out.
static uint32_t next_shared_phase(const pass *p, uint32_t phase) {
  const be_program *program = p->session->program;
  for (; phase_wanted(p, phase); phase++)
    for (uint32_t i = program->phase_begin[phase]; i < program->phase_begin[phase + 1]; i++)
      if (item_count(p, &program->instructions[i]) > 1)
        return phase;
  return phase;
}

// Phases of single items (of one token: norms, sums, rotations, appends) are not worth a barrier
// each: the last participant to leave the phase before does them while the others wait.
static void run_share(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  const pass *p = context;
  if (n_threads == 1) {
    run_alone(p);
    return;
  }
  bool last = thread == 0;
  for (uint32_t phase = 0;; phase++) {
    uint32_t shared = next_shared_phase(p, phase);
    for (; last && phase < shared; phase++)
      run_whole_phase(p, phase, thread);
    phase = shared;
    if (!phase_wanted(p, phase))
      return;
    if (last)
      be_work_begin(p->session->share, phase_items(p, phase), n_threads);
    be_barrier_wait(barrier);
    run_phase_share(p, phase, thread, n_threads);
    last = be_work_leave(p->session->share, n_threads);
  }
}

static void *align_up(void *block) { return (void *)be_round_up((uintptr_t)block, CACHE_LINE); }

be_status be_session_create(be_session **out, const be_program *program, uint32_t threads) {
  *out = NULL;
  if (threads < 1 || threads > BE_MAX_THREADS)
    return BE_ERR_ARGUMENT;
  be_session *session = calloc(1, sizeof *session);
  if (!session)
    return BE_ERR_NO_MEMORY;
  session->program = program;
  session->threads = threads;
  // calloc: pages of a large block stay untouched, hence uncounted, until they are used.
  session->arena_block = calloc(1, program->header.arena_bytes + CACHE_LINE);
  session->state_block = calloc(1, program->header.state_bytes + CACHE_LINE);
  session->share_block = calloc(1, be_work_share_bytes(threads) + BE_WORK_LINE);
  be_status status = BE_OK;
  if (!session->arena_block || !session->state_block || !session->share_block)
    status = BE_ERR_NO_MEMORY;
  else if (threads > 1)
    status = be_pool_reserve(threads);
  if (status != BE_OK) {
    be_session_destroy(session);
    return status;
  }
  session->arena = align_up(session->arena_block);
  session->state = align_up(session->state_block);
  session->share = be_work_share_in(session->share_block);
  *out = session;
  return BE_OK;
}

void be_session_destroy(be_session *session) {
  if (!session)
    return;
  free(session->arena_block);
  free(session->state_block);
  free(session->share_block);
  free(session);
}

size_t be_session_bytes(const be_session *session) {
  return sizeof *session + be_work_share_bytes(session->threads) + BE_WORK_LINE;
}

uint32_t be_session_position(const be_session *session) { return session->valid_positions; }

be_status be_session_profile(be_session *session, be_profile *profile) {
  if (profile && be_profile_threads(profile) < session->threads)
    return BE_ERR_ARGUMENT;
  session->profile = profile;
  return BE_OK;
}

static be_status check_run(const be_session *session, const pass *p, be_error *error) {
  const be_program *program = session->program;
  const be_program_header *header = &program->header;
  if (p->n_tokens < 1 || p->n_tokens > header->max_tokens)
    return be_fail(error, BE_ERR_ARGUMENT, "n_tokens", -1, -1, header->max_tokens, p->n_tokens);
  if (p->output_rows > p->n_tokens)
    return be_fail(error, BE_ERR_ARGUMENT, "output_rows", -1, -1, p->n_tokens, p->output_rows);
  if (p->position > session->valid_positions)
    return be_fail(error, BE_ERR_ARGUMENT, "position", -1, -1, session->valid_positions,
                   p->position);
  if (header->max_positions > 0 && p->n_tokens > header->max_positions - p->position)
    return be_fail(error, BE_ERR_ARGUMENT, "context", -1, -1, header->max_positions,
                   (uint64_t)p->position + p->n_tokens);
  for (uint32_t i = 0; i < header->input_count; i++) {
    const int32_t *ids = p->inputs[i];
    for (uint32_t t = 0; program->vocab[i] != 0 && t < p->n_tokens; t++)
      if (ids[t] < 0 || (uint32_t)ids[t] >= program->vocab[i])
        return be_fail(error, BE_ERR_ARGUMENT, "token id", -1, (int32_t)t, program->vocab[i],
                       (uint64_t)(int64_t)ids[t]);
  }
  return BE_OK;
}

be_status be_session_run(be_session *session, uint32_t n_tokens, uint32_t position,
                         uint32_t output_rows, const void *const *inputs, void *const *outputs,
                         be_error *error) {
  pass p = {session, &dispatch, inputs, outputs, n_tokens, position, output_rows};
  be_status status = check_run(session, &p, error);
  if (status != BE_OK)
    return status;
  uint64_t begin = session->profile ? be_profile_now() : 0;
  if (session->threads == 1)
    run_alone(&p);
  else
    be_pool_run(run_share, &p, session->threads);
  if (session->profile)
    be_profile_add_run(session->profile, begin);
  if (session->program->header.max_positions > 0)
    session->valid_positions = position + n_tokens;
  return BE_OK;
}
