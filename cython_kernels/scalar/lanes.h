// SPDX-License-Identifier: MIT
// The one order of every float sum: 16 lanes, then one tree.
//
//   lane j      adds elements j, j + 16, j + 32, ... in this order, beginning with +0
//   the tree    lane i += lane i + 8   (i < 8)
//               lane i += lane i + 4   (i < 4)
//               lane i += lane i + 2   (i < 2)
//               sum     = lane 0 + lane 1
//
// 16 lanes are one AVX-512 register, two of AVX2 or four of NEON, so that every ISA performs the
// same additions on the same operands and rounds the same way. A ragged tail may be padded with
// zeros: a lane is never -0 (it begins with +0, and +0 + -0 = x - x = +0), hence adding +0 to it
// changes nothing.
#ifndef BITNET_EDGE_SCALAR_LANES_H
#define BITNET_EDGE_SCALAR_LANES_H

#include <stddef.h>

enum { BE_LANES = 16 };

typedef struct be_lanes {
  float lane[BE_LANES];
} be_lanes;

// Adds a[0..n) * b[0..n) to the lanes; a[0] must be an element whose index is a multiple of 16.
static inline void be_lanes_add_products(be_lanes *lanes, const float *a, const float *b,
                                         size_t n) {
  size_t i = 0;
  for (; i + BE_LANES <= n; i += BE_LANES)
    for (size_t j = 0; j < BE_LANES; j++)
      lanes->lane[j] += a[i + j] * b[i + j];
  for (size_t j = 0; i + j < n; j++)
    lanes->lane[j] += a[i + j] * b[i + j];
}

static inline float be_lanes_sum(const be_lanes *lanes) {
  be_lanes tree = *lanes;
  for (size_t width = BE_LANES / 2; width > 0; width /= 2)
    for (size_t i = 0; i < width; i++)
      tree.lane[i] += tree.lane[i + width];
  return tree.lane[0];
}

#endif
