// SPDX-License-Identifier: MIT
// Yardsticks, so that a speed can be told as a share of what the machine gives in the same minute:
// reading memory, and ternary products over any buffer, in cache or out of it.
#ifndef BITNET_EDGE_CALIBRATE_H
#define BITNET_EDGE_CALIBRATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

// Reads all of `buffer` once, front to back, on `threads` participants of the pool, prefetching
// or not; `ns` is the time taken. A larger buffer than the caches measures memory.
be_status be_measure_read(const uint8_t *buffer, size_t bytes, uint32_t threads, bool prefetch,
                          uint64_t *ns);

// Runs `cycles` / 64 rounds of 64 additions, each of which needs the one before and takes a cycle
// on every CPU; `ns` is the time taken, so cycles / ns is the clock of this core in GHz.
void be_measure_clock(uint64_t cycles, uint64_t *ns);

// What be_measure_ternary does.
typedef struct be_ternary_work {
  uint32_t rows, k; // of one matrix in P16; rows a multiple of 16, k of 16
  uint32_t m;       // rows of activations: 1 is gemv, more is gemm; at most 4096
  uint32_t repeats; // passes over the buffer
  bool scalar;      // by the scalar kernels, whatever the dispatch table holds
} be_ternary_work;

// Multiplies every whole matrix in `buffer` (any bytes; at least one matrix) by fixed int8
// activations, `repeats` times over; `ns` is the time of all of it. The products are dropped.
be_status be_measure_ternary(const uint8_t *buffer, size_t bytes, const be_ternary_work *work,
                             uint32_t threads, uint64_t *ns);

// Multiplies every whole panel of 16 rows in `buffer` (any bytes; at least one panel), a head of k
// columns in `bits` 4, 8 (head_layout.h) or 16 (bfloat16 rows), by zeros; `ns` is the time.
be_status be_measure_head(const uint8_t *buffer, size_t bytes, uint32_t k, uint32_t bits,
                          uint32_t threads, uint64_t *ns);

#endif
