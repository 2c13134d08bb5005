// SPDX-License-Identifier: MIT
// quantize        m = max(absmax(x), 1e-5);  s = 127 / m;
//                 q = clamp(round_half_even(x * s), -128, 127), zeros up to a multiple of 16;
//                 q_sum = sum(q), row by row
// quantize_wide   the same to int16, s = limit / m, q within -limit .. limit, zeros up to a multiple
//                 of 64; q_sum[g] = sum(q[32g .. 32g + 31])
// A NaN does not count for m and becomes 0.
//
// Grid     (tokens) threadgroups of 32 n threads, a row each.
// Traffic  a row once from memory and once more from cache; 1 or 2 bytes out an element.
// Roofline latency: two short loops and two reductions; a row is some ten kilobytes.
#include "rows.h"

struct quantize_params {
  uint width;
};

struct quantize_wide_params {
  uint width;
  float limit;
};

inline float row_absmax(device const float *row, uint width, uint thread_index, uint threads) {
  float m = ABSMAX_MIN;
  for (uint i = thread_index; i < width; i += threads)
    m = absmax(m, row[i]);
  return m;
}

kernel void quantize(constant quantize_params &params [[buffer(0)]],
                     device char *q [[buffer(1)]],
                     device float *s [[buffer(2)]],
                     device int *q_sum [[buffer(3)]],
                     device const float *x [[buffer(4)]],
                     threadgroup float *scratch THREADGROUP_MEMORY(0), // one a simdgroup
                     threadgroup int *sums THREADGROUP_MEMORY(1),      // one a simdgroup
                     uint2 group [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint token = group.x, width = params.width, padded = (width + 15) / 16 * 16;
  const uint threads = SIMD_WIDTH * simdgroups;
  device const float *row = x + ulong(token) * width;
  float m = row_absmax(row, width, thread_index, threads);
  m = threadgroup_max(m, scratch, lane, simdgroup, simdgroups);
  const float scale = 127.0f / m;
  int sum = 0;
  for (uint i = thread_index; i < padded; i += threads) {
    int code = i < width ? int(quantize_one(row[i], scale, -128.0f, 127.0f)) : 0;
    q[ulong(token) * padded + i] = char(code);
    sum += code;
  }
  sum = threadgroup_sum(sum, sums, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    s[token] = scale;
    q_sum[token] = sum;
  }
}

kernel void quantize_wide(constant quantize_wide_params &params [[buffer(0)]],
                          device short *q [[buffer(1)]],
                          device float *s [[buffer(2)]],
                          device int *q_sum [[buffer(3)]],
                          device const float *x [[buffer(4)]],
                          threadgroup float *scratch THREADGROUP_MEMORY(0), // one a simdgroup
                          uint2 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint token = group.x, width = params.width, padded = (width + 63) / 64 * 64;
  device const float *row = x + ulong(token) * width;
  float m = row_absmax(row, width, thread_index, SIMD_WIDTH * simdgroups);
  m = threadgroup_max(m, scratch, lane, simdgroup, simdgroups);
  const float scale = params.limit / m;
  for (uint g = simdgroup; g < padded / 32; g += simdgroups) {
    uint i = 32 * g + lane;
    int code = i < width ? int(quantize_one(row[i], scale, -params.limit, params.limit)) : 0;
    q[ulong(token) * padded + i] = short(code);
    int sum = simd_sum(code);
    if (lane == 0)
      q_sum[ulong(token) * (padded / 32) + g] = sum;
  }
  if (thread_index == 0)
    s[token] = scale;
}
