// SPDX-License-Identifier: MIT
// Verifies a program once, so that program_run.c can execute it blind.
//
// Accepted means: for every n_tokens <= max_tokens and position + n_tokens <= max_positions, each
// operand lies inside its region, is aligned, is of a region its role allows; a read of the arena
// is of rows that one earlier instruction of the same run wrote as they are; no instruction's
// output overlaps its own inputs unless the op works in place; ports have one dtype and width; the
// instructions for the last rows only (BE_FLAG_OUTPUT_ROWS) come after all others.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "program.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bitnet-edge reads little-endian files in place; this CPU is big-endian"
#endif

_Static_assert(sizeof(be_instruction) == 128, "instruction layout");
_Static_assert(sizeof(be_program_header) == 64, "program header layout");
_Static_assert(sizeof(be_port) == 8, "port layout");

enum { PROGRAM_PREFIX = sizeof(be_program_header) + BE_MAX_PORTS * sizeof(be_port) };

// More independent instructions than this in a row are split by a barrier; it bounds the
// scheduling cost of a hostile program and no real layer comes near it.
enum { MAX_PHASE_LENGTH = 16 };

typedef struct range {
  uint64_t begin, end;
} range;

// An operand resolved to memory: region (ports are regions of their own) and extent.
typedef struct extent {
  be_access access;
  uint32_t space; // region << 8 | port
  range bytes;
} extent;

// Rows of the arena that earlier instructions of the run have written and nobody has overwritten.
typedef struct live_rows {
  range bytes;
  uint64_t row_bytes;
} live_rows;

static bool overlap(range a, range b) { return a.begin < b.end && b.begin < a.end; }

static bool conflict(const extent *a, const extent *b) {
  return ((a->access | b->access) & BE_WRITE) && a->space == b->space &&
         overlap(a->bytes, b->bytes);
}

typedef struct verifier {
  be_program *program;
  size_t weights_size;
  live_rows *live; // room for every write of every instruction
  size_t live_count;
  extent phase[MAX_PHASE_LENGTH * BE_MAX_OPERANDS]; // operands of the phase being formed
  size_t phase_extents;
  uint32_t phase_length;
  uint32_t written_outputs; // mask of ports
  bool tail;                // an instruction with BE_FLAG_OUTPUT_ROWS has been seen
  be_error *error;
} verifier;

static be_status verify_header(const be_program_header *header, size_t section_size,
                               be_error *error) {
  if (memcmp(header->magic, BE_PROGRAM_MAGIC, sizeof header->magic) != 0)
    return be_fail(error, BE_ERR_PROGRAM, "program magic", -1, -1, 0, 0);
  if (header->version != BE_PROGRAM_VERSION)
    return be_fail(error, BE_ERR_VERSION, "program version", -1, -1, BE_PROGRAM_VERSION,
                   header->version);
  const struct {
    const char *what;
    uint64_t value, low, high;
  } limits[] = {
      {"instruction_count", header->instruction_count, 1, BE_MAX_INSTRUCTIONS},
      {"max_tokens", header->max_tokens, 1, BE_MAX_TOKENS},
      {"max_positions", header->max_positions, 0, BE_MAX_POSITIONS},
      {"input_count", header->input_count, 1, BE_MAX_PORTS},
      {"output_count", header->output_count, 1, BE_MAX_PORTS},
      {"input_count + output_count", (uint64_t)header->input_count + header->output_count, 2,
       BE_MAX_PORTS},
      {"arena_bytes", header->arena_bytes, 0, UINT64_C(1) << 40},
      {"state_bytes", header->state_bytes, 0, UINT64_C(1) << 40},
      {"reserved0", header->reserved0, 0, 0},
      {"window", header->window, 0, header->max_positions},
      {"sinks", header->sinks, 0, header->window > 0 ? header->max_positions - header->window : 0},
      {"rows of the KV cache",
       header->window > 0 ? be_kv_window_rows(header->window, header->sinks, header->max_tokens)
                          : 0,
       0, BE_MAX_POSITIONS},
  };
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
    if (limits[i].value < limits[i].low || limits[i].value > limits[i].high)
      return be_fail(error, BE_ERR_PROGRAM, limits[i].what, -1, -1,
                     limits[i].value < limits[i].low ? limits[i].low : limits[i].high,
                     limits[i].value);
  for (size_t i = 0; i < sizeof header->reserved1; i++)
    if (header->reserved1[i] != 0)
      return be_fail(error, BE_ERR_PROGRAM, "reserved1", -1, -1, 0, header->reserved1[i]);
  uint64_t size = PROGRAM_PREFIX + (uint64_t)header->instruction_count * sizeof(be_instruction);
  if (section_size != size)
    return be_fail(error, BE_ERR_TRUNCATED, "program size", -1, -1, size, section_size);
  return BE_OK;
}

static be_status verify_ports(const be_program *program, be_error *error) {
  for (uint32_t i = 0; i < program->header.input_count + program->header.output_count; i++) {
    const be_port *port = &program->ports[i];
    if (port->dtype >= BE_PORT_DTYPE_COUNT)
      return be_fail(error, BE_ERR_PROGRAM, "port dtype", -1, (int32_t)i, BE_PORT_DTYPE_COUNT - 1,
                     port->dtype);
    if (port->width == 0 || port->width > BE_MAX_DIMENSION)
      return be_fail(error, BE_ERR_PROGRAM, "port width", -1, (int32_t)i, BE_MAX_DIMENSION,
                     port->width);
  }
  for (uint32_t i = program->header.input_count + program->header.output_count; i < BE_MAX_PORTS;
       i++)
    if (program->ports[i].dtype != 0 || program->ports[i].width != 0)
      return be_fail(error, BE_ERR_PROGRAM, "unused port", -1, (int32_t)i, 0,
                     program->ports[i].width);
  return BE_OK;
}

// Ports are bound to whole buffers of `width` elements a row: operands begin at their start.
static be_status verify_port(const be_program *program, const be_operand_spec *spec,
                             uint64_t operand, be_error *error) {
  bool input = be_operand_region(operand) == BE_REGION_INPUT;
  uint32_t count = input ? program->header.input_count : program->header.output_count;
  uint32_t index = be_operand_port(operand);
  if (index >= count)
    return be_fail(error, BE_ERR_PROGRAM, "port index", -1, -1, count, index);
  const be_port *port = &program->ports[input ? index : program->header.input_count + index];
  if (be_operand_offset(operand) != 0)
    return be_fail(error, BE_ERR_PROGRAM, "port offset", -1, -1, 0, be_operand_offset(operand));
  if (port->dtype != spec->dtype)
    return be_fail(error, BE_ERR_PROGRAM, "port dtype", -1, -1, spec->dtype, port->dtype);
  if (port->width != spec->width)
    return be_fail(error, BE_ERR_PROGRAM, "port width", -1, -1, spec->width, port->width);
  return BE_OK;
}

static be_status resolve(const verifier *v, const be_instruction *in, const be_operand_spec *spec,
                         uint64_t operand, extent *out) {
  const be_program_header *header = &v->program->header;
  be_region region = be_operand_region(operand);
  if (region >= BE_REGION_COUNT || !(spec->regions & (1u << region)))
    return be_fail(v->error, BE_ERR_PROGRAM, "operand region", -1, -1, spec->regions, region);
  uint64_t bytes = spec->per_token ? spec->bytes * header->max_tokens : spec->bytes;
  *out = (extent){spec->access, (uint32_t)region << 8 | be_operand_port(operand), {0, bytes}};
  if (region == BE_REGION_INPUT || region == BE_REGION_OUTPUT) {
    // An output has output_rows rows, so only a tail instruction may write it when that differs;
    // an input has n_tokens rows.
    if (region == BE_REGION_OUTPUT && !(in->flags & BE_FLAG_OUTPUT_ROWS))
      return be_fail(v->error, BE_ERR_PROGRAM, "output written for all tokens", -1, -1,
                     BE_FLAG_OUTPUT_ROWS, in->flags);
    return verify_port(v->program, spec, operand, v->error);
  }
  if (be_operand_port(operand) != 0)
    return be_fail(v->error, BE_ERR_PROGRAM, "operand port", -1, -1, 0, be_operand_port(operand));
  uint64_t offset = be_operand_offset(operand);
  uint64_t size = region == BE_REGION_WEIGHTS ? v->weights_size
                  : region == BE_REGION_ARENA ? header->arena_bytes
                                              : header->state_bytes;
  if (offset % BE_OPERAND_ALIGNMENT != 0)
    return be_fail(v->error, BE_ERR_PROGRAM, "operand alignment", -1, -1, BE_OPERAND_ALIGNMENT,
                   offset);
  if (offset > size || bytes > size - offset)
    return be_fail(v->error, BE_ERR_PROGRAM, "operand beyond its region", -1, -1, size,
                   offset + bytes);
  out->bytes = (range){offset, offset + bytes};
  return BE_OK;
}

// Whether `read`, overlapping the written extent `written` of the same instruction, is allowed.
static bool in_place(const be_operand_spec *spec, const extent *read, const extent *written) {
  return spec->in_place && read->bytes.begin == written->bytes.begin;
}

static be_status verify_overlaps(const verifier *v, const be_operand_spec *specs,
                                 const extent *extents) {
  for (int w = 0; w < BE_MAX_OPERANDS; w++) {
    if (!(extents[w].access & BE_WRITE))
      continue;
    for (int r = 0; r < BE_MAX_OPERANDS; r++)
      if (r != w && extents[r].access != BE_UNUSED && conflict(&extents[w], &extents[r]) &&
          !(w == 0 && in_place(&specs[r], &extents[r], &extents[w])))
        return be_fail(v->error, BE_ERR_PROGRAM, "operand overlaps an output", -1, r,
                       extents[w].bytes.begin, extents[r].bytes.begin);
  }
  return BE_OK;
}

// A read of the arena must be of exactly the rows that one earlier instruction wrote, with the same
// row size: then a run of fewer tokens than max_tokens reads nothing that an earlier run left.
static bool is_live(const verifier *v, const extent *read, uint64_t row_bytes) {
  for (size_t i = v->live_count; i-- > 0;) // most reads are of what was written last
    if (v->live[i].bytes.begin == read->bytes.begin && v->live[i].row_bytes == row_bytes)
      return true;
  return false;
}

static void write_rows(verifier *v, range bytes, uint64_t row_bytes) {
  size_t kept = 0;
  for (size_t i = 0; i < v->live_count; i++)
    if (!overlap(v->live[i].bytes, bytes))
      v->live[kept++] = v->live[i];
  v->live[kept] = (live_rows){bytes, row_bytes};
  v->live_count = kept + 1;
}

static be_status verify_order(verifier *v, const be_operand_spec *specs, const extent *extents) {
  const uint32_t arena = BE_REGION_ARENA << 8;
  for (int i = 0; i < BE_MAX_OPERANDS; i++)
    if (extents[i].access == BE_READ && extents[i].space == arena &&
        !is_live(v, &extents[i], specs[i].bytes))
      return be_fail(v->error, BE_ERR_PROGRAM, "operand read before it is written", -1, i, 0,
                     extents[i].bytes.begin);
  for (int i = 0; i < BE_MAX_OPERANDS; i++)
    if ((extents[i].access & BE_READ) && extents[i].space >> 8 == BE_REGION_OUTPUT &&
        !(v->written_outputs >> (extents[i].space & 0xff) & 1))
      return be_fail(v->error, BE_ERR_PROGRAM, "operand read before it is written", -1, i, 0, 0);
  for (int i = 0; i < BE_MAX_OPERANDS; i++) {
    if (!(extents[i].access & BE_WRITE))
      continue;
    if (extents[i].space == arena)
      write_rows(v, extents[i].bytes, specs[i].bytes);
    else if (extents[i].space >> 8 == BE_REGION_OUTPUT)
      v->written_outputs |= 1u << (extents[i].space & 0xff);
  }
  return BE_OK;
}

static void schedule(verifier *v, uint32_t index, const extent *extents) {
  bool barrier = v->phase_length == 0 || v->phase_length == MAX_PHASE_LENGTH;
  for (int i = 0; i < BE_MAX_OPERANDS && !barrier; i++)
    for (size_t j = 0; j < v->phase_extents && !barrier && extents[i].access != BE_UNUSED; j++)
      barrier = conflict(&extents[i], &v->phase[j]);
  if (barrier) {
    v->program->phase_begin[v->program->phase_count++] = index;
    v->phase_length = 0;
    v->phase_extents = 0;
  }
  v->phase_length++;
  for (int i = 0; i < BE_MAX_OPERANDS; i++)
    if (extents[i].access != BE_UNUSED)
      v->phase[v->phase_extents++] = extents[i];
}

// The next word of a list of names, and the list behind it; NULL at its end.
static const char *next_name(const char **names, size_t *length) {
  const char *name = *names + strspn(*names, " ");
  *length = strcspn(name, " ");
  *names = name + *length;
  return *length > 0 ? name : NULL;
}

// What op_table.def names of dims and scalars; the rest is zero.
static be_status verify_fields(const be_instruction *in, be_error *error) {
  const char *dims = "", *scalars = "", *name;
  size_t length;
  switch ((be_opcode)in->opcode) {
#define BE_OP(op, opcode, dim_names, scalar_names, operands)                                       \
  case opcode:                                                                                     \
    dims = dim_names;                                                                              \
    scalars = scalar_names;                                                                        \
    break;
#include "op_table.def"
#undef BE_OP
  }
  for (size_t i = 0; i < sizeof in->dim / sizeof *in->dim; i++)
    if (!next_name(&dims, &length) && in->dim[i] != 0)
      return be_fail(error, BE_ERR_PROGRAM, "dimension not used by the op", -1, -1, 0, in->dim[i]);
  for (size_t i = 0; i < sizeof in->scalar / sizeof *in->scalar; i++) {
    uint32_t bits, infinity = 0x7f800000;
    memcpy(&bits, &in->scalar[i], sizeof bits);
    name = next_name(&scalars, &length);
    if (!name && bits != 0)
      return be_fail(error, BE_ERR_PROGRAM, "scalar not used by the op", -1, -1, 0, bits);
    if ((bits & infinity) == infinity)
      return be_fail(error, BE_ERR_PROGRAM, "scalar is not finite (bits)", -1, -1, 0, bits);
    if (name && length == 3 && memcmp(name, "eps", 3) == 0 && in->scalar[i] < 0)
      return be_fail(error, BE_ERR_PROGRAM, "eps is negative (bits)", -1, -1, 0, bits);
  }
  return BE_OK;
}

static be_status verify_instruction(verifier *v, uint32_t index) {
  const be_instruction *in = &v->program->instructions[index];
  be_operand_spec specs[BE_MAX_OPERANDS];
  extent extents[BE_MAX_OPERANDS] = {0};
  for (size_t i = 0; i < sizeof in->reserved / sizeof *in->reserved; i++)
    if (in->reserved[i] != 0)
      return be_fail(v->error, BE_ERR_PROGRAM, "reserved field", -1, -1, 0, in->reserved[i]);
  if (v->tail && !(in->flags & BE_FLAG_OUTPUT_ROWS))
    return be_fail(v->error, BE_ERR_PROGRAM, "instruction for all rows after the tail", -1, -1,
                   BE_FLAG_OUTPUT_ROWS, in->flags);
  v->tail = in->flags & BE_FLAG_OUTPUT_ROWS;
  be_status status = be_instruction_specs(in, &v->program->header, specs, v->error);
  if (status == BE_OK)
    status = verify_fields(in, v->error);
  for (int i = 0; i < BE_MAX_OPERANDS && status == BE_OK; i++) {
    if (specs[i].access == BE_UNUSED || (specs[i].optional && in->operand[i] == 0)) {
      if (in->operand[i] != 0)
        status = be_fail(v->error, BE_ERR_PROGRAM, "operand not used by the op", -1, i, 0,
                         in->operand[i]);
      continue;
    }
    status = resolve(v, in, &specs[i], in->operand[i], &extents[i]);
    v->program->token_bytes += specs[i].bytes;
    if (status != BE_OK && v->error)
      v->error->operand = i;
  }
  if (status == BE_OK)
    status = verify_overlaps(v, specs, extents);
  if (status == BE_OK)
    status = verify_order(v, specs, extents);
  if (status != BE_OK)
    return status;
  if (in->opcode == BE_OP_embed || in->opcode == BE_OP_head_embed) {
    uint32_t port = be_operand_port(in->operand[2]);
    if (v->program->vocab[port] == 0 || in->dim[1] < v->program->vocab[port])
      v->program->vocab[port] = in->dim[1];
  }
  schedule(v, index, extents);
  return BE_OK;
}

// The records are copied (a few tens of KB): what was verified cannot change under a running
// engine when somebody writes to the mapped file.
static be_status copy_instructions(be_program *program, const uint8_t *records, be_error *error) {
  size_t count = program->header.instruction_count;
  program->instructions = malloc(count * sizeof *program->instructions);
  program->phase_begin = malloc((count + 1) * sizeof *program->phase_begin);
  if (!program->instructions || !program->phase_begin)
    return be_fail(error, BE_ERR_NO_MEMORY, "instructions", -1, -1,
                   count * sizeof *program->instructions, 0);
  memcpy(program->instructions, records, count * sizeof *program->instructions);
  return BE_OK;
}

be_status be_program_open(be_program **out, const uint8_t *section, size_t section_size,
                          const uint8_t *weights, size_t weights_size, be_error *error) {
  *out = NULL;
  if (section_size < PROGRAM_PREFIX)
    return be_fail(error, BE_ERR_TRUNCATED, "program header", -1, -1, PROGRAM_PREFIX, section_size);
  if ((uintptr_t)weights % BE_OPERAND_ALIGNMENT != 0)
    return be_fail(error, BE_ERR_ARGUMENT, "weights alignment", -1, -1, BE_OPERAND_ALIGNMENT,
                   (uintptr_t)weights % BE_OPERAND_ALIGNMENT);
  be_program *program = calloc(1, sizeof *program);
  if (!program)
    return be_fail(error, BE_ERR_NO_MEMORY, "program", -1, -1, sizeof *program, 0);
  memcpy(&program->header, section, sizeof program->header);
  memcpy(program->ports, section + sizeof program->header, sizeof program->ports);
  program->weights = weights;
  program->weights_bytes = weights_size;
  verifier v = {.program = program, .weights_size = weights_size, .error = error};
  be_status status = verify_header(&program->header, section_size, error);
  if (status == BE_OK)
    status = verify_ports(program, error);
  if (status == BE_OK)
    status = copy_instructions(program, section + PROGRAM_PREFIX, error);
  if (status == BE_OK) {
    size_t writes = (size_t)program->header.instruction_count * BE_MAX_OPERANDS;
    v.live = malloc(writes * sizeof *v.live);
    if (!v.live)
      status = be_fail(error, BE_ERR_NO_MEMORY, "verification", -1, -1, writes, 0);
  }
  for (uint32_t i = 0; i < program->header.instruction_count && status == BE_OK; i++) {
    status = verify_instruction(&v, i);
    if (status != BE_OK && error)
      error->instruction = (int32_t)i;
  }
  free(v.live);
  if (status != BE_OK) {
    be_program_close(program);
    return status;
  }
  program->phase_begin[program->phase_count] = program->header.instruction_count;
  *out = program;
  return BE_OK;
}

void be_program_close(be_program *program) {
  if (!program)
    return;
  free(program->instructions);
  free(program->phase_begin);
  free(program);
}

const be_program_header *be_program_info(const be_program *program) { return &program->header; }

const be_port *be_program_port(const be_program *program, uint32_t index) {
  uint32_t count = program->header.input_count + program->header.output_count;
  return index < count ? &program->ports[index] : NULL;
}

const be_instruction *be_program_instruction(const be_program *program, uint32_t index) {
  return index < program->header.instruction_count ? &program->instructions[index] : NULL;
}

size_t be_program_bytes(const be_program *program) {
  size_t count = program->header.instruction_count;
  return sizeof *program + count * sizeof *program->instructions +
         (count + 1) * sizeof *program->phase_begin;
}

uint32_t be_program_phase_count(const be_program *program) { return program->phase_count; }
