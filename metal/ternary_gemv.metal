// SPDX-License-Identifier: MIT
// y[t][r] = (float(sum_k w[r][k] * q[t][k]) / s[t]) * w_scale (+ bias[r]), w in {-1, 0, +1} as P16.
//
// Layout   bitnet_edge/packing.py, read as it lies in the file: a block is 16 rows x 16 columns in
//          64 bytes, row r's 32-bit word holds column 4f + c in bits 8c + 2f and the next one, as
//          weight + 1; the blocks of 16 rows form one sequential panel.
// Grid     (ceil(rows / 16), tokens) threadgroups of 32 n threads: a panel each. The n simdgroups
//          share out its blocks; a thread reads 16 bytes, four rows of a block, and a simdgroup 512
//          consecutive bytes.
// Traffic  every weight byte once a token: ceil(rows / 16) * k_blocks * 64 bytes; q comes from cache.
// Roofline memory: 3 instructions a weight (and, convert, fma) against 1/4 byte. An M1 has 1.3e12
//          of them for 68e9 bytes a second, 4.8 a weight.
//
// Exact in any order: a masked code is code * 2^(8c + 2f), its activation carries 2^-(8c + 2f), and
// their product is the integer code * q. A thread sums 16 * ceil(k_blocks / 8n) of them a row, each at
// most 3 * 128 in magnitude (the hostile code 3 included): for k <= 2^18 no more than 16 * 2^11 * 384
// = 12,582,912 < 2^24, so that no float addition rounds. Threads and simdgroups are then added as
// int32. Larger k is refused (dispatch.py).
#include "numerics.h"

struct ternary_gemv_params {
  uint rows;
  uint k_blocks;
  uint has_bias;
  float w_scale;
};

// The 16 activations of a block, each divided by the power of two of its code's place.
inline void load_activations(thread float *scaled, device const char *q) {
  const float place[4] = {1.0f, 0x1p-8f, 0x1p-16f, 0x1p-24f};
  const float field[4] = {1.0f, 0x1p-2f, 0x1p-4f, 0x1p-6f};
  for (uint f = 0; f < 4; f++) {
    char4 four = ((device const char4 *)q)[f];
    scaled[4 * f + 0] = float(four.x) * (place[0] * field[f]);
    scaled[4 * f + 1] = float(four.y) * (place[1] * field[f]);
    scaled[4 * f + 2] = float(four.z) * (place[2] * field[f]);
    scaled[4 * f + 3] = float(four.w) * (place[3] * field[f]);
  }
}

// sum + sum_k code[k] * q[k] over the 16 columns of one word.
inline float dot_word(float sum, uint word, thread const float *scaled) {
  for (uint f = 0; f < 4; f++)
    for (uint c = 0; c < 4; c++)
      sum = fma(float(word & (3u << (8 * c + 2 * f))), scaled[4 * f + c], sum);
  return sum;
}

kernel void ternary_gemv(constant ternary_gemv_params &params [[buffer(0)]],
                         device float *y [[buffer(1)]],
                         device const uchar *w [[buffer(2)]],
                         device const char *q [[buffer(3)]],
                         device const float *s [[buffer(4)]],
                         device const int *q_sum [[buffer(5)]],
                         device const float *bias [[buffer(6)]],
                         threadgroup int *partial THREADGROUP_MEMORY(0), // 16 a simdgroup
                         uint2 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint panel = group.x, token = group.y, k_blocks = params.k_blocks;
  device const uint4 *words = (device const uint4 *)(w + ulong(panel) * k_blocks * 64);
  device const char *activations = q + ulong(token) * k_blocks * 16;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (uint block = 8 * simdgroup + lane / 4; block < k_blocks; block += 8 * simdgroups) {
    uint4 four_rows = words[4 * block + lane % 4];
    float scaled[16];
    load_activations(scaled, activations + 16 * block);
    sum[0] = dot_word(sum[0], four_rows.x, scaled);
    sum[1] = dot_word(sum[1], four_rows.y, scaled);
    sum[2] = dot_word(sum[2], four_rows.z, scaled);
    sum[3] = dot_word(sum[3], four_rows.w, scaled);
  }
  // Lanes with the same lane % 4 have the same rows.
  for (uint i = 0; i < 4; i++) {
    int total = int(sum[i]);
    total += simd_shuffle_xor(total, 4);
    total += simd_shuffle_xor(total, 8);
    total += simd_shuffle_xor(total, 16);
    if (lane < 4)
      partial[16 * simdgroup + 4 * lane + i] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint row = 16 * panel + thread_index;
  if (thread_index < 16 && row < params.rows) {
    int acc = -q_sum[token];
    for (uint i = 0; i < simdgroups; i++)
      acc += partial[16 * i + thread_index];
    float quotient = float(acc) / s[token];
    float value = quotient * params.w_scale;
    y[ulong(token) * params.rows + row] = params.has_bias != 0 ? value + bias[row] : value;
  }
}
