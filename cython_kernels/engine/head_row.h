// SPDX-License-Identifier: MIT
// One row of a quantised head as float32: the embedding of a token when the two are tied.
#ifndef BITNET_EDGE_ENGINE_HEAD_ROW_H
#define BITNET_EDGE_ENGINE_HEAD_ROW_H

#include <stddef.h>
#include <stdint.h>

// y[0..k) = weight * scale of row `row` of a head of k columns with `bits` 8 or 4.
void be_head_row(float *y, const uint8_t *head, uint32_t bits, size_t row, size_t k);

#endif
