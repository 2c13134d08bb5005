// SPDX-License-Identifier: MIT
// Rows of a quantised head (cython_kernels/include/head_layout.h) times int16 activations:
//   head_gemv_i8   y[t][r] = (float(sum_k w[r][k] * q[t][k]) / s[t]) * scale[r] (+ bias[r])
//   head_gemv_i4   y[t][r] = ((float(part_0) * scale_0[r] + float(part_1) * scale_1[r]) + ...) / s[t],
//                  part_g = sum_k q[k] * (nibble[r][k] - 8) over 32 columns
//
// Grid     (ceil(rows / 16), tokens) threadgroups, a panel each: of 32 n threads for int8 (a thread
//          reads 16 bytes, four rows of a block), of 128 for int4 (a thread has a row of a group).
// Traffic  every weight byte once a token, int4 scales included; q from cache.
// Roofline memory: int32 multiply-adds, one a weight byte (int8) or two; an M1 has 3e11 a second for
//          68e9 bytes.
//
// int8 sums stay below 2^31 (be_head_limit), int4 parts at 2^23 or below; the groups of a row are
// added in their order.
#include "numerics.h"

struct head_gemv_params {
  uint rows;
  uint k;
  uint has_bias;
};

inline int dot_four(uint word, short4 q) {
  return int(char(word & 255u)) * q.x + int(char(word >> 8 & 255u)) * q.y +
         int(char(word >> 16 & 255u)) * q.z + int(char(word >> 24)) * q.w;
}

kernel void head_gemv_i8(constant head_gemv_params &params [[buffer(0)]],
                         device float *y [[buffer(1)]],
                         device const uchar *w [[buffer(2)]],
                         device const short *q [[buffer(3)]],
                         device const float *s [[buffer(4)]],
                         device const float *bias [[buffer(5)]],
                         threadgroup int *partial THREADGROUP_MEMORY(0), // 16 a simdgroup
                         uint2 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint blocks = (params.k + 3) / 4, padded = (params.k + 63) / 64 * 64;
  device const uchar *panel = w + ulong(group.x) * (64 + ulong(blocks) * 64);
  device const uint4 *words = (device const uint4 *)(panel + 64);
  device const short4 *activations = (device const short4 *)(q + ulong(group.y) * padded);
  int sum[4] = {0, 0, 0, 0};
  for (uint block = 8 * simdgroup + lane / 4; block < blocks; block += 8 * simdgroups) {
    const uint4 four_rows = words[4 * block + lane % 4];
    const short4 four = activations[block];
    sum[0] += dot_four(four_rows.x, four);
    sum[1] += dot_four(four_rows.y, four);
    sum[2] += dot_four(four_rows.z, four);
    sum[3] += dot_four(four_rows.w, four);
  }
  // Lanes with the same lane % 4 have the same rows.
  for (uint i = 0; i < 4; i++) {
    int total = sum[i];
    total += simd_shuffle_xor(total, 4);
    total += simd_shuffle_xor(total, 8);
    total += simd_shuffle_xor(total, 16);
    if (lane < 4)
      partial[16 * simdgroup + 4 * lane + i] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint row = 16 * group.x + thread_index;
  if (thread_index < 16 && row < params.rows) {
    int acc = 0;
    for (uint i = 0; i < simdgroups; i++)
      acc += partial[16 * i + thread_index];
    const float quotient = float(acc) / s[group.y];
    const float value = quotient * ((device const float *)panel)[thread_index];
    y[ulong(group.y) * params.rows + row] = params.has_bias != 0 ? value + bias[row] : value;
  }
}

kernel void head_gemv_i4(constant head_gemv_params &params [[buffer(0)]],
                         device float *y [[buffer(1)]],
                         device const uchar *w [[buffer(2)]],
                         device const short *q [[buffer(3)]],
                         device const float *s [[buffer(4)]],
                         device const int *q_sum [[buffer(5)]],
                         device const float *bias [[buffer(6)]],
                         threadgroup float *products THREADGROUP_MEMORY(0), // 2 x 8 groups x 16 rows
                         uint2 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]]) {
  const uint blocks = (params.k + 63) / 64, groups = 2 * blocks;
  const uint row = thread_index % 16, slot = thread_index / 16;
  device const uchar *panel = w + ulong(group.x) * blocks * 576;
  device const short *activations = q + ulong(group.y) * blocks * 64;
  device const int *sums = q_sum + ulong(group.y) * groups;
  float total = 0.0f; // of threads 0 .. 15: the row's chain
  for (uint first = 0; first < groups; first += 8) {
    // Two sets of products: one barrier a round keeps writers off the set that is being read.
    threadgroup float *set = products + first / 8 % 2 * 128;
    const uint g = first + slot;
    if (g < groups) {
      device const uchar *block = panel + g / 2 * 576;
      const float scale = f16_to_f32(((device const ushort *)block)[g % 2 * 16 + row]);
      device const uint *lines = (device const uint *)(block + 64) + g % 2 * 64;
      int part = -8 * sums[g];
      for (uint line = 0; line < 4; line++) {
        const uint word = lines[16 * line + row];
        for (uint c = 0; c < 8; c++)
          part += int(word >> (16 * (c % 2) + 4 * (c / 2)) & 15u) *
                  int(activations[32 * g + 8 * line + c]);
      }
      set[thread_index] = float(part) * scale;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; thread_index < 16 && i < 8 && first + i < groups; i++)
      total = total + set[16 * i + thread_index];
  }
  const uint y_row = 16 * group.x + thread_index;
  if (thread_index < 16 && y_row < params.rows) {
    const float value = total / s[group.y];
    y[ulong(group.y) * params.rows + y_row] = params.has_bias != 0 ? value + bias[y_row] : value;
  }
}
