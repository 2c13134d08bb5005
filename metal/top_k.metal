// SPDX-License-Identifier: MIT
// The k largest of n values, largest first, of equal ones the first: one threadgroup takes 1024 of
// them. The host runs it again on the candidates until one threadgroup is left; k = 1 is argmax, what
// the engine's greedy sampler takes. NaN and -inf are never taken: index 0xffffffff.
//
// Grid     (ceil(n / 1024), rows) threadgroups of 256 threads.
// Traffic  4 bytes a value once (8 with indices), 8 out a candidate.
// Roofline memory for k = 1; otherwise latency, k rounds of a reduction.
#include "numerics.h"

#define CHUNK 1024u
#define NO_INDEX 0xffffffffu

struct top_k_params {
  uint n;
  uint k;
  uint has_indices;
};

struct candidate {
  float value;
  uint index;
};

inline bool is_before(float value, uint index, candidate other) {
  return value > other.value || (value == other.value && index < other.index);
}

inline candidate better(candidate best, float value, uint index) {
  if (is_before(value, index, best)) {
    best.value = value;
    best.index = index;
  }
  return best;
}

kernel void top_k(constant top_k_params &params [[buffer(0)]],
                  device float *top_values [[buffer(1)]],
                  device uint *top_indices [[buffer(2)]],
                  device const float *values [[buffer(3)]],
                  device const uint *indices [[buffer(4)]],
                  threadgroup float *best_values THREADGROUP_MEMORY(0), // one a simdgroup
                  threadgroup uint *best_indices THREADGROUP_MEMORY(1), // one a simdgroup
                  uint2 group [[threadgroup_position_in_grid]],
                  uint2 groups [[threadgroups_per_grid]],
                  uint thread_index [[thread_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const ulong row = ulong(group.y) * params.n;
  float value[4];
  uint index[4];
  for (uint i = 0; i < 4; i++) {
    const uint at = group.x * CHUNK + 256 * i + thread_index;
    value[i] = -INFINITY;
    index[i] = NO_INDEX;
    if (at < params.n && values[row + at] > -INFINITY) {
      value[i] = values[row + at];
      index[i] = params.has_indices != 0 ? indices[row + at] : at;
    }
  }
  for (uint round = 0; round < params.k; round++) {
    candidate best = {-INFINITY, NO_INDEX};
    for (uint i = 0; i < 4; i++)
      best = better(best, value[i], index[i]);
    for (uint mask = 16; mask > 0; mask /= 2)
      best = better(best, simd_shuffle_xor(best.value, mask), simd_shuffle_xor(best.index, mask));
    if (lane == 0) {
      best_values[simdgroup] = best.value;
      best_indices[simdgroup] = best.index;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 8; i++)
      best = better(best, best_values[i], best_indices[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 4; i++)
      if (index[i] == best.index)
        value[i] = -INFINITY, index[i] = NO_INDEX;
    if (thread_index == 0) {
      const ulong to = (ulong(group.y) * groups.x + group.x) * params.k + round;
      top_values[to] = best.value;
      top_indices[to] = best.index;
    }
  }
}
