// SPDX-License-Identifier: MIT
// y[t][r] = sum_k w[r][k] * x[t][k] (+ bias[r]), w row-major in float32, float16 or bfloat16.
//
// Grid     (ceil(rows / 8n), tokens) threadgroups of 32 n threads; a simdgroup has 8 rows, four
//          threads a row, each with 4 of the 16 lanes of the engine's sum (scalar/lanes.h).
// Traffic  every weight byte once a token, in pieces of 32 or 64 bytes a row; x from cache.
// Roofline memory: 3 instructions an element of 2 bytes (widen, multiply, add). Products and sums are
//          not fused, since their bits are the engine's; the unit of an M1 that is half idle for it
//          would wait for memory anyway.
#include "rows.h"

struct dense_gemv_params {
  uint rows;
  uint k;
  uint has_bias;
};

// Four elements as float32. `aligned`: k is a multiple of 4, so that rows are aligned to it.
inline float4 load_four(device const float *w, bool aligned, uint count) {
  if (aligned)
    return ((device const float4 *)w)[0];
  return float4(count > 0 ? w[0] : 0.0f, count > 1 ? w[1] : 0.0f, count > 2 ? w[2] : 0.0f,
                count > 3 ? w[3] : 0.0f);
}

// The bits of four 16-bit elements, zeros beyond `count`.
inline ushort4 load_bits(device const ushort *w, bool aligned, uint count) {
  if (aligned)
    return ((device const ushort4 *)w)[0];
  return ushort4(count > 0 ? w[0] : 0, count > 1 ? w[1] : 0, count > 2 ? w[2] : 0,
                 count > 3 ? w[3] : 0);
}

struct float32_weights {
  device const float *w;
  float4 at(ulong i, bool aligned, uint count) const { return load_four(w + i, aligned, count); }
};

struct float16_weights {
  device const ushort *w;
  float4 at(ulong i, bool aligned, uint count) const {
    ushort4 bits = load_bits(w + i, aligned, count);
    return float4(f16_to_f32(bits.x), f16_to_f32(bits.y), f16_to_f32(bits.z), f16_to_f32(bits.w));
  }
};

struct bfloat16_weights {
  device const ushort *w;
  float4 at(ulong i, bool aligned, uint count) const {
    ushort4 bits = load_bits(w + i, aligned, count);
    return float4(bf16_to_f32(bits.x), bf16_to_f32(bits.y), bf16_to_f32(bits.z),
                  bf16_to_f32(bits.w));
  }
};

template <class Weights>
inline void dense_gemv(constant dense_gemv_params &params, device float *y, Weights weights,
                       device const float *x, device const float *bias, uint2 group, uint lane,
                       uint simdgroup, uint simdgroups) {
  const uint k = params.k, row = 8 * (group.x * simdgroups + simdgroup) + lane / 4;
  const bool inside = row < params.rows, aligned = k % 4 == 0;
  device const float *activations = x + ulong(group.y) * k;
  float4 sum = float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (inside)
    for (uint i = 4 * (lane % 4); i < k; i += 16) {
      float4 a = weights.at(ulong(row) * k + i, aligned, k - i);
      float4 b = load_four(activations + i, aligned, k - i);
      sum.x = multiply_add(a.x, b.x, sum.x);
      sum.y = multiply_add(a.y, b.y, sum.y);
      sum.z = multiply_add(a.z, b.z, sum.z);
      sum.w = multiply_add(a.w, b.w, sum.w);
    }
  const float value = tree_sum_of_quarters(sum.x, sum.y, sum.z, sum.w);
  if (inside && lane % 4 == 0)
    y[ulong(group.y) * params.rows + row] = params.has_bias != 0 ? value + bias[row] : value;
}

kernel void dense_gemv_f32(constant dense_gemv_params &params [[buffer(0)]],
                           device float *y [[buffer(1)]],
                           device const float *w [[buffer(2)]],
                           device const float *x [[buffer(3)]],
                           device const float *bias [[buffer(4)]],
                           uint2 group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  float32_weights weights = {w};
  dense_gemv(params, y, weights, x, bias, group, lane, simdgroup, simdgroups);
}

kernel void dense_gemv_f16(constant dense_gemv_params &params [[buffer(0)]],
                           device float *y [[buffer(1)]],
                           device const ushort *w [[buffer(2)]],
                           device const float *x [[buffer(3)]],
                           device const float *bias [[buffer(4)]],
                           uint2 group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  float16_weights weights = {w};
  dense_gemv(params, y, weights, x, bias, group, lane, simdgroup, simdgroups);
}

kernel void dense_gemv_bf16(constant dense_gemv_params &params [[buffer(0)]],
                            device float *y [[buffer(1)]],
                            device const ushort *w [[buffer(2)]],
                            device const float *x [[buffer(3)]],
                            device const float *bias [[buffer(4)]],
                            uint2 group [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]]) {
  bfloat16_weights weights = {w};
  dense_gemv(params, y, weights, x, bias, group, lane, simdgroup, simdgroups);
}
