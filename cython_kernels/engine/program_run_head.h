// SPDX-License-Identifier: MIT
// The parts of program_run.c that are about float and quantised output layers.
#ifndef BITNET_EDGE_ENGINE_PROGRAM_RUN_HEAD_H
#define BITNET_EDGE_ENGINE_PROGRAM_RUN_HEAD_H

#include "program_run.h"

size_t be_dense_items(const be_instruction *in);    // also of a screened_linear's whole rows
size_t be_head_items(const be_instruction *in);     // head_linear and screen_linear
size_t be_screened_items(const be_instruction *in); // when the largest are wanted

void be_run_dense_linear(const be_pass *p, const be_instruction *in, size_t item);
void be_run_head_linear(const be_pass *p, const be_instruction *in, size_t item);
void be_run_screen_limits(const be_pass *p, const be_instruction *in, size_t t);
void be_run_screened_linear(const be_pass *p, const be_instruction *in, size_t item);

#endif
