// SPDX-License-Identifier: MIT
// What each instruction reads and writes: one case per row of op_table.def.
//
// All products stay far below 2^64: dims are at most 2^24, tokens 2^16 and positions 2^20, and
// no extent multiplies more than three of them with a small constant after be_instruction_specs
// has checked the dims (2^24 * 2^24 * 4 = 2^50; 2^12 * 2^20 * 2^9 * 4 = 2^43).
#include <string.h>

#include "head_screen.h"
#include "kernels.h"
#include "kv_cache.h"
#include "program.h"

enum {
  WEIGHTS = 1 << BE_REGION_WEIGHTS,
  ARENA = 1 << BE_REGION_ARENA,
  STATE = 1 << BE_REGION_STATE,
  INPUT = 1 << BE_REGION_INPUT,
  OUTPUT = 1 << BE_REGION_OUTPUT
};

static be_operand_spec rows_in(uint32_t width) {
  return (be_operand_spec){.access = BE_READ,
                           .regions = ARENA | INPUT,
                           .per_token = true,
                           .dtype = BE_F32,
                           .width = width,
                           .bytes = (uint64_t)width * 4};
}

static be_operand_spec rows_in_place(uint32_t width) {
  be_operand_spec spec = rows_in(width);
  spec.in_place = true;
  return spec;
}

static be_operand_spec rows_out(uint32_t width) {
  be_operand_spec spec = rows_in(width);
  spec.access = BE_WRITE;
  spec.regions = ARENA | OUTPUT;
  return spec;
}

// Scratch rows that only the engine reads: quantised activations, angles.
static be_operand_spec scratch(be_access access, uint64_t row_bytes) {
  return (be_operand_spec){
      .access = access, .regions = ARENA, .per_token = true, .bytes = row_bytes};
}

static be_operand_spec weights(uint64_t bytes) {
  return (be_operand_spec){.access = BE_READ, .regions = WEIGHTS, .bytes = bytes};
}

static be_operand_spec table_of_rows(uint64_t bytes) {
  be_operand_spec spec = weights(bytes);
  spec.by_row = true;
  return spec;
}

static be_operand_spec token_ids(void) {
  return (be_operand_spec){.access = BE_READ,
                           .regions = INPUT,
                           .per_token = true,
                           .dtype = BE_I32,
                           .width = 1,
                           .bytes = 4};
}

static be_operand_spec optional(be_operand_spec spec) {
  spec.optional = true;
  return spec;
}

static be_operand_spec cache(be_access access, uint64_t bytes) {
  return (be_operand_spec){.access = access, .regions = STATE, .bytes = bytes};
}

// One checked dimension: name, value, smallest and largest legal value.
typedef struct limit {
  const char *what;
  uint32_t value, low, high;
} limit;

static be_status check_limits(const limit *limits, size_t count, be_error *error) {
  for (size_t i = 0; i < count; i++)
    if (limits[i].value < limits[i].low || limits[i].value > limits[i].high)
      return be_fail(error, BE_ERR_PROGRAM, limits[i].what, -1, -1,
                     limits[i].value < limits[i].low ? limits[i].low : limits[i].high,
                     limits[i].value);
  return BE_OK;
}

#define CHECK(...)                                                                                 \
  do {                                                                                             \
    const limit limits[] = {__VA_ARGS__};                                                          \
    be_status status = check_limits(limits, sizeof limits / sizeof *limits, error);                \
    if (status != BE_OK)                                                                           \
      return status;                                                                               \
  } while (0)

// Attention's dims: heads a multiple of kv_heads, both within the kernels' fixed scratch.
static be_status check_heads(uint32_t heads, uint32_t kv_heads, be_error *error) {
  if (heads % kv_heads != 0 || heads / kv_heads > BE_MAX_HEADS_PER_KV)
    return be_fail(error, BE_ERR_PROGRAM, "heads must be a small multiple of kv_heads", -1, -1,
                   kv_heads, heads);
  return BE_OK;
}

// Groups of columns with sums or scales of their own are whole blocks; one group may be anything.
static be_status check_groups(uint32_t groups, uint32_t k, be_error *error) {
  CHECK({"groups", groups, 1, k});
  if (groups > 1 && k % (groups * BE_BLOCK_K) != 0)
    return be_fail(error, BE_ERR_PROGRAM, "groups of whole blocks", -1, -1, k / BE_BLOCK_K, groups);
  return BE_OK;
}

static be_status quantize_specs(const be_instruction *in, be_operand_spec *specs, be_error *error) {
  uint32_t width = in->dim[0], groups = in->dim[1];
  be_status status = check_groups(groups, width, error);
  if (status != BE_OK)
    return status;
  specs[0] = scratch(BE_WRITE, be_round_up(width, BE_BLOCK_K));
  specs[1] = scratch(BE_WRITE, sizeof(float));
  specs[2] = scratch(BE_WRITE, groups * sizeof(int32_t));
  specs[3] = rows_in(width);
  if (in->opcode == BE_OP_rms_norm_quantize)
    specs[4] = weights((uint64_t)width * 4);
  return BE_OK;
}

static be_status embed_specs(const be_instruction *in, be_operand_spec *specs, be_error *error) {
  uint32_t width = in->dim[0], vocab = in->dim[1], dtype = in->dim[2];
  CHECK({"embed: dtype", dtype, BE_F32, BE_BF16}, {"embed: vocab", vocab, 1, BE_MAX_DIMENSION});
  specs[0] = rows_out(width);
  specs[1] = table_of_rows((uint64_t)vocab * width * be_dtype_bytes(dtype));
  specs[2] = token_ids();
  return BE_OK;
}

static be_status check_bits(uint32_t bits, uint32_t k, be_error *error) {
  CHECK({"head: bits", bits, 4, 8}, {"head: columns", k, 1, BE_HEAD_MAX_K});
  if (bits != 4 && bits != 8)
    return be_fail(error, BE_ERR_PROGRAM, "head: bits", -1, -1, 8, bits);
  return BE_OK;
}

// Wide activations: int16 rows, their scales, sums of groups.
static void wide_specs(be_access access, uint32_t k, be_operand_spec specs[3]) {
  uint64_t padded_k = be_round_up(k, BE_WIDE_K);
  specs[0] = scratch(access, padded_k * sizeof(int16_t));
  specs[1] = scratch(access, sizeof(float));
  specs[2] = scratch(access, padded_k / BE_I4_GROUP_K * sizeof(int32_t));
}

// The integer sums cannot overflow: be_head_limit.
static be_status wide_head_specs(const be_instruction *in, be_operand_spec *specs,
                                 be_error *error) {
  if (in->opcode == BE_OP_quantize_wide) {
    CHECK({"quantize_wide: width", in->dim[0], 1, BE_HEAD_MAX_K});
    wide_specs(BE_WRITE, in->dim[0], specs);
    specs[3] = rows_in(in->dim[0]);
    return BE_OK;
  }
  bool embeds = in->opcode == BE_OP_head_embed;
  uint32_t rows = embeds ? in->dim[1] : in->dim[0], k = embeds ? in->dim[0] : in->dim[1];
  be_status status = check_bits(in->dim[2], k, error);
  if (status != BE_OK)
    return status;
  CHECK({"head: rows", rows, 1, BE_MAX_DIMENSION});
  specs[0] = rows_out(embeds ? k : rows);
  uint64_t bytes = be_head_bytes(in->dim[2], rows, k);
  specs[1] = embeds ? table_of_rows(bytes) : weights(bytes);
  if (embeds) {
    specs[2] = token_ids();
    return BE_OK;
  }
  wide_specs(BE_READ, k, specs + 2);
  specs[5] = optional(weights((uint64_t)rows * 4));
  return BE_OK;
}

// Estimates and logits share one output: it is written, then read, then read and written.
static be_operand_spec output_rows(be_access access, uint32_t width) {
  be_operand_spec spec = rows_out(width);
  spec.access = access;
  spec.regions = OUTPUT;
  return spec;
}

static be_status screened_head_specs(const be_instruction *in, be_operand_spec *specs,
                                     be_error *error) {
  uint32_t rows = in->dim[0], k = in->dim[1];
  bool limits = in->opcode == BE_OP_screen_limits;
  CHECK({"screen: columns", k, 1, BE_HEAD_MAX_K});
  if (in->opcode != BE_OP_screened_linear) {
    be_status status = check_bits(in->dim[2], k, error);
    if (status != BE_OK)
      return status;
  }
  be_operand_spec wide[3];
  wide_specs(BE_READ, k, wide);
  if (in->opcode == BE_OP_screen_linear) {
    specs[0] = output_rows(BE_WRITE, rows);
    specs[1] = weights(be_head_bytes(in->dim[2], rows, k));
    memcpy(specs + 2, wide, sizeof wide);
    return BE_OK;
  }
  uint32_t dtype = in->dim[limits ? 3 : 2];
  CHECK({"screen: dtype", dtype, BE_F32, BE_BF16});
  be_operand_spec table = table_of_rows((uint64_t)rows * k * be_dtype_bytes(dtype));
  if (limits) {
    specs[0] = scratch(BE_WRITE, sizeof(be_screen_limits));
    specs[1] = output_rows(BE_READ, rows);
    specs[2] = wide[0];
    specs[3] = wide[1];
    specs[4] = rows_in(k);
    specs[5] = table;
    return BE_OK;
  }
  specs[0] = output_rows(BE_READ_WRITE, rows);
  specs[1] = scratch(BE_READ, sizeof(be_screen_limits));
  specs[2] = rows_in(k);
  specs[3] = table;
  specs[4] = weights((uint64_t)rows * 2 * sizeof(float));
  return BE_OK;
}

static be_status dense_linear_specs(const be_instruction *in, be_operand_spec *specs,
                                    be_error *error) {
  uint32_t rows = in->dim[0], k = in->dim[1];
  CHECK({"linear: k", k, 1, BE_MAX_DIMENSION},
        {"dense_linear: dtype", in->dim[2], BE_F32, BE_BF16});
  specs[0] = rows_out(rows);
  specs[1] = weights((uint64_t)rows * k * be_dtype_bytes(in->dim[2]));
  specs[2] = rows_in(k);
  specs[3] = optional(weights((uint64_t)rows * 4));
  return BE_OK;
}

static be_status ternary_linear_specs(const be_instruction *in, be_operand_spec *specs,
                                      be_error *error) {
  uint32_t rows = in->dim[0], k = in->dim[1], groups = in->dim[2], dtype = in->dim[3];
  // |sum_k code * q| <= 3 * 128 * k must stay below 2^31, hostile code 3 included.
  CHECK({"ternary_linear: k", k, 1, 1 << 22}, {"ternary_linear: dtype", dtype, BE_F32, BE_F16});
  be_status status = check_groups(groups, k, error);
  if (status != BE_OK)
    return status;
  if (groups > 1 && in->operand[6] == 0)
    return be_fail(error, BE_ERR_PROGRAM, "ternary_linear: groups without scales", -1, -1, 1,
                   groups);
  uint64_t padded_k = be_round_up(k, BE_BLOCK_K);
  specs[0] = rows_out(rows);
  specs[1] = weights(be_round_up(rows, BE_PANEL_ROWS) * padded_k / 4);
  specs[2] = scratch(BE_READ, padded_k);
  specs[3] = scratch(BE_READ, sizeof(float));
  specs[4] = scratch(BE_READ, groups * sizeof(int32_t));
  specs[5] = optional(weights((uint64_t)rows * 4));
  specs[6] = optional(weights((uint64_t)groups * rows * be_dtype_bytes(dtype)));
  return BE_OK;
}

static be_status head_specs(const be_instruction *in, const be_program_header *header,
                            be_operand_spec *specs, be_error *error) {
  uint32_t heads = in->dim[0], head_dim = in->opcode == BE_OP_attention ? in->dim[2] : in->dim[1];
  CHECK({"heads", heads, 1, 4096}, {"head_dim", head_dim, 2, BE_MAX_HEAD_DIM});
  if (head_dim % 2 != 0)
    return be_fail(error, BE_ERR_PROGRAM, "head_dim must be even", -1, -1, head_dim + 1, head_dim);
  if (in->opcode != BE_OP_rope && header->max_positions == 0)
    return be_fail(error, BE_ERR_PROGRAM, "attention needs max_positions", -1, -1, 1, 0);
  uint32_t width = heads * head_dim;
  be_operand_spec angles = scratch(BE_READ, (uint64_t)head_dim * 4);
  if (in->opcode == BE_OP_rope) {
    specs[0] = rows_out(width);
    specs[1] = rows_in_place(width);
    specs[2] = angles;
    return BE_OK;
  }
  uint32_t dtype = in->opcode == BE_OP_attention ? in->dim[3] : in->dim[2];
  if (dtype != BE_F32 && dtype != BE_F16 && dtype != BE_I8 && dtype != BE_I4)
    return be_fail(error, BE_ERR_PROGRAM, "KV cache: dtype", -1, -1, BE_I4, dtype);
  uint64_t head_bytes = be_kv_layout_of(dtype, head_dim, be_kv_rows(header)).head_bytes;
  if (in->opcode == BE_OP_kv_append) {
    specs[0] = cache(BE_WRITE, heads * head_bytes);
    specs[1] = rows_in(width);
    specs[2] = optional(angles);
    return BE_OK;
  }
  uint32_t kv_heads = in->dim[1];
  CHECK({"kv_heads", kv_heads, 1, 4096});
  be_status status = check_heads(heads, kv_heads, error);
  if (status != BE_OK)
    return status;
  specs[0] = rows_out(width);
  specs[1] = rows_in(width);
  specs[2] = cache(BE_READ, kv_heads * head_bytes);
  specs[3] = cache(BE_READ, kv_heads * head_bytes);
  specs[4] = optional(rows_in(width));
  return BE_OK;
}

be_status be_instruction_specs(const be_instruction *in, const be_program_header *header,
                               be_operand_spec specs[BE_MAX_OPERANDS], be_error *error) {
  memset(specs, 0, BE_MAX_OPERANDS * sizeof *specs);
  CHECK({"flags", in->flags, 0, BE_FLAG_OUTPUT_ROWS}, {"dims", in->dim[0], 1, BE_MAX_DIMENSION});
  uint32_t width = in->dim[0];
  switch ((be_opcode)in->opcode) {
  case BE_OP_embed:
    return embed_specs(in, specs, error);
  case BE_OP_rms_norm:
    specs[0] = rows_out(width);
    specs[1] = rows_in_place(width);
    specs[2] = weights((uint64_t)width * 4);
    return BE_OK;
  case BE_OP_quantize:
  case BE_OP_rms_norm_quantize:
    return quantize_specs(in, specs, error);
  case BE_OP_ternary_linear:
    return ternary_linear_specs(in, specs, error);
  case BE_OP_dense_linear:
    return dense_linear_specs(in, specs, error);
  case BE_OP_gated_activation:
    CHECK({"gated_activation: kind", in->dim[1], 0, 1});
    specs[0] = rows_out(width);
    specs[1] = specs[2] = rows_in_place(width);
    return BE_OK;
  case BE_OP_add:
    specs[0] = rows_out(width);
    specs[1] = specs[2] = rows_in_place(width);
    return BE_OK;
  case BE_OP_rope_angles:
    CHECK({"rope_angles: half", width, 1, BE_MAX_HEAD_DIM / 2},
          {"rope_angles: at", in->dim[1], 0, BE_MAX_POSITIONS});
    specs[0] = scratch(BE_WRITE, (uint64_t)width * 8);
    specs[1] = weights((uint64_t)width * 4);
    return BE_OK;
  case BE_OP_rope:
  case BE_OP_kv_append:
  case BE_OP_attention:
    return head_specs(in, header, specs, error);
  case BE_OP_quantize_wide:
  case BE_OP_head_linear:
  case BE_OP_head_embed:
    return wide_head_specs(in, specs, error);
  case BE_OP_screen_linear:
  case BE_OP_screen_limits:
  case BE_OP_screened_linear:
    return screened_head_specs(in, specs, error);
  }
  return be_fail(error, BE_ERR_PROGRAM, "unknown opcode", -1, -1, BE_OP_screened_linear,
                 in->opcode);
}
