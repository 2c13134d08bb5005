// SPDX-License-Identifier: MIT
// Which pages of the mapped weights are kept in memory.
//
//   mapped     the operating system's business: clean pages, read when touched, dropped at will
//   resident   read at once and locked, for latency
//   streamed   read ahead of the computation and dropped behind it: what stays resident is about
//              BE_STREAM_AHEAD and BE_STREAM_STEP bytes, whatever the size of the model
//
// Tables that only single rows are read from are exempt from the system's read-ahead in the first
// and the last.
#ifndef BITNET_EDGE_ENGINE_RESIDENCY_H
#define BITNET_EDGE_ENGINE_RESIDENCY_H

#include "program.h"

enum {
  BE_STREAM_AHEAD = 8 << 20, // read ahead: some milliseconds of flash or of computation
  BE_STREAM_STEP = 8 << 20   // a phase of more weight is done in steps of about this much
};

// Lets go of and reads weight pages between the steps of a pass. One thread at a time.
typedef struct be_stream {
  const be_program *program;
  int file;             // -1: the page cache is left alone
  uint64_t file_offset; // of the weights
  bool screened;        // only the largest logits are wanted: single rows of a screened head
  // Where reading ahead has got to: an instruction, and bytes of its weights.
  uint32_t ahead_instruction, end_instruction;
  uint64_t ahead_bytes;
  uint64_t ahead; // bytes read ahead that no finished step has used
} be_stream;

// Applies a mode to the weights of a program. For BE_RESIDENCY_STREAMED fills `stream`, which owns
// a duplicate of `file`. BE_ERR_RESIDENCY: this system, or its limits, do not allow the mode.
be_status be_residency_apply(const be_program *program, be_residency mode, int file,
                             uint64_t file_offset, be_stream *stream, be_error *error);
void be_residency_release(const be_program *program, be_residency mode, be_stream *stream);

// Starts a pass over the instructions before `end`.
void be_stream_begin(be_stream *stream, uint32_t end, bool screened);
// In how many steps a phase is to be done; 1 but for phases of a great deal of weight.
uint32_t be_stream_steps(const be_stream *stream, uint32_t phase);
// Step `step` of `steps` of a phase is done: drops its pages, reads further ahead.
void be_stream_done(be_stream *stream, uint32_t phase, uint32_t step, uint32_t steps);

#endif
