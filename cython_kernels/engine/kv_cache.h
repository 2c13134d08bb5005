// SPDX-License-Identifier: MIT
// The KV cache: how its rows lie in memory, the same on every ISA, and the two things done to it.
//
// A cache tensor is kv_heads heads, one after the other; a head is `positions` rows:
//   f32, f16  rows of head_dim elements
//   int8      rows of head_dim codes padded to 16, then one float32 scale a row
//   int4      rows of 16 bytes for every 32 elements (the last group padded), then one bfloat16
//             scale a group; scalar/quantize_kv_i4.c has the order of the codes
// Codes and scales begin on cache lines. A position costs head_dim + 4 bytes in int8 and
// head_dim * 9 / 16 in int4, against head_dim * 2 in f16.
#ifndef BITNET_EDGE_ENGINE_KV_CACHE_H
#define BITNET_EDGE_ENGINE_KV_CACHE_H

#include <stdint.h>

#include "bitnet_edge.h"
#include "kernels.h"

// Rows of a cache with a window: the sinks, then a ring that still holds what the first of
// `max_tokens` tokens sees when the last has been appended; whole blocks of the softmax, so that
// where the ring wraps shows in no bit.
uint64_t be_kv_window_rows(uint32_t window, uint32_t sinks, uint32_t max_tokens);

// Writes row `row` of one head: head_dim floats, rounded or quantised.
void be_kv_append(const be_kernels *kernels, uint32_t dtype, const be_kv_layout *layout,
                  uint8_t *head, size_t row, const float *x, size_t head_dim);

// Rows row .. row + (end - first) - 1 of one head, which hold the positions first .. end - 1, for
// the queries q; all of them seen by later tokens (attention.h).
be_kv_segment be_kv_segment_of(const be_kv_layout *layout, const uint8_t *k_head,
                               const uint8_t *v_head, size_t row, size_t first, size_t end,
                               const float *q);

// Some tokens of the query heads that share a key/value head, over segments of its cache.
void be_kv_attend(const be_kernels *kernels, uint32_t dtype, const be_attention *a);

#endif
