// SPDX-License-Identifier: MIT
// What the shaders share that give a row to a threadgroup, or a sum to 16 lanes.
#ifndef BITNET_EDGE_METAL_ROWS_H
#define BITNET_EDGE_METAL_ROWS_H

#include "numerics.h"

// The tree of scalar/lanes.h over lanes 0 .. 15 of the simdgroup; the sum is lane 0's.
inline float tree_sum(float lane_value) {
  lane_value = lane_value + simd_shuffle_down(lane_value, 8);
  lane_value = lane_value + simd_shuffle_down(lane_value, 4);
  lane_value = lane_value + simd_shuffle_down(lane_value, 2);
  return lane_value + simd_shuffle_down(lane_value, 1);
}

// The same where a thread has four of the 16 lanes, 4 (thread % 4) ..+ 3: every thread of the four
// gets the sum. Additions commute, so that both sides of a swap round alike.
inline float tree_sum_of_quarters(float a, float b, float c, float d) {
  a = a + simd_shuffle_xor(a, 2);
  b = b + simd_shuffle_xor(b, 2);
  c = c + simd_shuffle_xor(c, 2);
  d = d + simd_shuffle_xor(d, 2);
  a = a + simd_shuffle_xor(a, 1);
  b = b + simd_shuffle_xor(b, 1);
  c = c + simd_shuffle_xor(c, 1);
  d = d + simd_shuffle_xor(d, 1);
  float even = a + c;
  float odd = b + d;
  return even + odd;
}

// The largest value of a threadgroup, for every thread of it. No value is NaN. `scratch` has a
// float for each simdgroup and may be used again at once.
inline float threadgroup_max(float value, threadgroup float *scratch, uint lane, uint simdgroup,
                             uint simdgroups) {
  value = simd_max(value);
  if (lane == 0)
    scratch[simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = 0; i < simdgroups; i++)
    value = max(value, scratch[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return value;
}

inline int threadgroup_sum(int value, threadgroup int *scratch, uint lane, uint simdgroup,
                           uint simdgroups) {
  value = simd_sum(value);
  if (lane == 0)
    scratch[simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int sum = 0;
  for (uint i = 0; i < simdgroups; i++)
    sum += scratch[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return sum;
}

#endif
