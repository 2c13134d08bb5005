// SPDX-License-Identifier: MIT
// One forward pass, cut into work items: independent pieces that may run on any thread.
#ifndef BITNET_EDGE_ENGINE_PROGRAM_RUN_H
#define BITNET_EDGE_ENGINE_PROGRAM_RUN_H

#include <stdatomic.h>

#include "kernels.h"
#include "program.h"

typedef struct be_pass {
  const be_program *program;
  const be_kernels *kernels;
  uint8_t *arena, *state;
  const void *const *inputs;
  void *const *outputs;
  uint32_t n_tokens, position, output_rows;
  uint32_t best;                         // largest logits wanted of a screened head, 0: all
  float margin;                          // and all less than this below the last of them
  _Atomic uint64_t *screened, *rescored; // rows of screened heads, those computed exactly
} be_pass;

// Items of one instruction in this pass.
size_t be_item_count(const be_pass *pass, const be_instruction *instruction);
// Computes one; those of a phase in any order, at any time after the phase before.
void be_run_item(const be_pass *pass, const be_instruction *instruction, size_t item);

#endif
