// SPDX-License-Identifier: MIT
// Where the operands of an instruction lie in a pass, for the files that compute work items.
#ifndef BITNET_EDGE_ENGINE_PROGRAM_OPERANDS_H
#define BITNET_EDGE_ENGINE_PROGRAM_OPERANDS_H

#include "program_run.h"

// One work item of a linear layer reads about this much weight: long enough to hide the taking,
// short enough to balance cores of different speed.
enum {
  BE_ITEM_BYTES = 32 * 1024,
  // A head is far larger than all else: longer streams, still hundreds of items.
  BE_HEAD_ITEM_BYTES = 128 * 1024,
  BE_ITEM_PANELS = 16 // at most, of one token
};

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

// Row t of operand i: arena and inputs are indexed by token, outputs by output row.
typedef struct be_rows {
  uint32_t begin, end; // tokens this instruction works on
} be_rows;

static inline be_rows be_instruction_rows(const be_pass *p, const be_instruction *in) {
  bool tail = in->flags & BE_FLAG_OUTPUT_ROWS;
  return (be_rows){tail ? p->n_tokens - p->output_rows : 0, p->n_tokens};
}

static inline const void *be_resolve_read(const be_pass *p, uint64_t operand) {
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
static inline void *be_resolve_write(const be_pass *p, uint64_t operand, size_t row_bytes) {
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

#define READ(type, index) ((const type *)be_resolve_read(p, in->operand[index]))
#define WRITE(type, index, width)                                                                  \
  ((type *)be_resolve_write(p, in->operand[index], (size_t)(width) * sizeof(type)))

#endif
