// SPDX-License-Identifier: MIT
// One forward pass, cut into work items: independent pieces that may run on any thread.
#ifndef BITNET_EDGE_ENGINE_PROGRAM_RUN_H
#define BITNET_EDGE_ENGINE_PROGRAM_RUN_H

#include "kernels.h"
#include "program.h"

typedef struct be_pass {
  const be_program *program;
  const be_kernels *kernels;
  uint8_t *arena, *state;
  const void *const *inputs;
  void *const *outputs;
  uint32_t n_tokens, position, output_rows;
} be_pass;

// Items of one instruction in this pass.
size_t be_item_count(const be_pass *pass, const be_instruction *instruction);
// Computes one; those of a phase in any order, at any time after the phase before.
void be_run_item(const be_pass *pass, const be_instruction *instruction, size_t item);

#endif
