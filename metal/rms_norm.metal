// SPDX-License-Identifier: MIT
// rms_norm            y = (x * r) * gain,  r = 1 / sqrt(sum(x^2) / width + eps), row by row; y may
//                     be x
// rms_norm_quantize   v = (x * r) * gain;  m = max(absmax(v), 1e-5);  s = 127 / m;
//                     q = clamp(round_half_even(v * s), -128, 127), zeros up to a multiple of 16;
//                     q_sum = sum(q); v is never stored
//
// Grid     (tokens) threadgroups of 32 n threads, a row each.
// Traffic  a row and the gains once from memory (then from cache, up to three times), 4 bytes out an
//          element or 1.
// Roofline latency: the sum of squares has the engine's 16 lanes, so that its bits are the
//          engine's: width / 16 dependent additions, about 1 us for 2560 columns, against the
//          hundreds of us of the matrices around it.
#include "rows.h"

struct rms_norm_params {
  uint width;
  float eps;
};

// r, for every thread. scratch: one float.
inline float reciprocal_rms(device const float *x, uint width, float eps,
                            threadgroup float *scratch, uint lane, uint simdgroup) {
  if (simdgroup == 0) {
    float squares = 0.0f;
    if (lane < 16)
      for (uint i = lane; i < width; i += 16)
        squares = multiply_add(x[i], x[i], squares);
    float sum = tree_sum(squares);
    if (lane == 0)
      scratch[0] = sum;
  }
  // y may be x: what was read here is written behind this barrier.
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  float mean = scratch[0] / float(width);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return 1.0f / sqrt(mean + eps);
}

kernel void rms_norm(constant rms_norm_params &params [[buffer(0)]],
                     device float *y [[buffer(1)]],
                     device const float *x [[buffer(2)]],
                     device const float *gain [[buffer(3)]],
                     threadgroup float *scratch THREADGROUP_MEMORY(0), // one
                     uint2 group [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]]) {
  const ulong first = ulong(group.x) * params.width;
  const float r = reciprocal_rms(x + first, params.width, params.eps, scratch, lane, simdgroup);
  for (uint i = thread_index; i < params.width; i += SIMD_WIDTH * simdgroups) {
    float normed = x[first + i] * r;
    y[first + i] = normed * gain[i];
  }
}

kernel void rms_norm_quantize(constant rms_norm_params &params [[buffer(0)]],
                              device char *q [[buffer(1)]],
                              device float *s [[buffer(2)]],
                              device int *q_sum [[buffer(3)]],
                              device const float *x [[buffer(4)]],
                              device const float *gain [[buffer(5)]],
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
  const float r = reciprocal_rms(row, width, params.eps, scratch, lane, simdgroup);
  float m = ABSMAX_MIN;
  for (uint i = thread_index; i < width; i += threads) {
    float normed = row[i] * r;
    m = absmax(m, normed * gain[i]);
  }
  m = threadgroup_max(m, scratch, lane, simdgroup, simdgroups);
  const float scale = 127.0f / m;
  int sum = 0;
  for (uint i = thread_index; i < padded; i += threads) {
    int code = 0;
    if (i < width) {
      float normed = row[i] * r;
      code = int(quantize_one(normed * gain[i], scale, -128.0f, 127.0f));
    }
    q[ulong(token) * padded + i] = char(code);
    sum += code;
  }
  sum = threadgroup_sum(sum, sums, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    s[token] = scale;
    q_sum[token] = sum;
  }
}
