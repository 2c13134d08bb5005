// SPDX-License-Identifier: MIT
// A verified program, as program_verify.c builds it and program_run.c executes it.
#ifndef BITNET_EDGE_ENGINE_PROGRAM_H
#define BITNET_EDGE_ENGINE_PROGRAM_H

#include <stdbool.h>

#include "bitnet_edge.h"
#include "kv_cache.h"

typedef enum be_access { BE_UNUSED = 0, BE_READ = 1, BE_WRITE = 2, BE_READ_WRITE = 3 } be_access;

// What an instruction does with one operand: everything verification and scheduling need.
typedef struct be_operand_spec {
  be_access access;
  uint8_t regions; // mask of 1 << be_region
  bool optional;
  bool in_place;  // a read that may be exactly the written operand 0
  bool by_row;    // a table of which single rows are read, here and there
  bool per_token; // `bytes` is per row of a run, otherwise the whole extent
  uint32_t dtype; // of a port, when bound to one (be_dtype)
  uint32_t width; // elements per row of a port
  uint64_t bytes;
} be_operand_spec;

// Checks opcode, flags and dims, and fills the specs of all operands (BE_UNUSED ones zeroed).
be_status be_instruction_specs(const be_instruction *instruction, const be_program_header *header,
                               be_operand_spec specs[BE_MAX_OPERANDS], be_error *error);

static inline be_region be_operand_region(uint64_t operand) { return (be_region)(operand >> 56); }
static inline uint32_t be_operand_port(uint64_t operand) { return (operand >> 48) & 0xff; }
static inline uint64_t be_operand_offset(uint64_t operand) {
  return operand & ((UINT64_C(1) << 48) - 1);
}

static inline uint64_t be_round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Rows of every KV cache of a program.
static inline uint32_t be_kv_rows(const be_program_header *header) {
  return header->window > 0
             ? (uint32_t)be_kv_window_rows(header->window, header->sinks, header->max_tokens)
             : header->max_positions;
}

static inline uint64_t be_dtype_bytes(uint32_t dtype) {
  return dtype == BE_F16 || dtype == BE_BF16 ? 2 : 4;
}

struct be_program {
  be_program_header header;
  be_port ports[BE_MAX_PORTS];
  be_instruction *instructions; // private copies, verified
  const uint8_t *weights;       // in the caller's mapping
  uint64_t weights_bytes;
  // Instructions of one phase touch disjoint memory (or only read): they need no barrier between
  // them. Derived here, never promised by a file. phase_begin has phase_count + 1 entries.
  uint32_t *phase_begin;
  uint32_t phase_count;
  uint64_t token_bytes;         // that a run of one token touches at most: how long it may take
  uint32_t vocab[BE_MAX_PORTS]; // ids of input i must be below this; 0: not token ids
};

static inline be_status be_fail(be_error *error, be_status status, const char *what,
                                int32_t instruction, int32_t operand, uint64_t expected,
                                uint64_t found) {
  if (error)
    *error = (be_error){what, instruction, operand, expected, found};
  return status;
}

#endif
