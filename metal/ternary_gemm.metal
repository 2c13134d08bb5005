// SPDX-License-Identifier: MIT
// ternary_gemv.metal for many rows of q: y[t][r] = (float(sum_k w[r][k] * q[t][k]) / s[t]) * w_scale.
//
//   ternary_gemm         products of a thread's 4 rows x 4 tokens in registers, on any GPU
//   ternary_gemm_matrix  8 x 8 matrices of the simdgroup, Apple7 (A14, M1) and later
//
// Grid     (ceil(rows / 32), ceil(tokens / 64)) threadgroups of 128 threads: two panels, 64 tokens.
//          Steps of 64 columns: weights (32 x 64) and activations (64 x 64) go to threadgroup memory
//          as half, exactly: |w| <= 2, |q| <= 128.
// Traffic  every weight byte once for each 64 tokens.
// Roofline compute: 2 * 64 operations a weight of 1/4 byte; an M1's 2.6e12 a second ask for 5e9 bytes.
//
// Exact in any order: |sum of w * q| <= 2 * 128 * k <= 2^24 for k <= 2^16, the hostile code 3
// included, so that no float addition rounds. Larger k goes token by token (dispatch.py).
#include "numerics.h"
#include <metal_simdgroup_matrix>

#define TILE_ROWS 32u
#define TILE_TOKENS 64u
#define TILE_K 64u

struct ternary_gemm_params {
  uint rows;
  uint k_blocks;
  uint tokens;
  uint has_bias;
  float w_scale;
};

// Columns first .. first + 63 of two panels and 64 tokens; what is beyond the matrix is zeros.
inline void load_tiles(threadgroup half *weights, threadgroup half *activations,
                       device const uchar *w, device const char *q, uint k_blocks, uint panels,
                       uint tokens, uint2 group, uint first, uint thread_index) {
  // A thread has one word, a row of a block: 2 panels x 4 blocks x 16 rows.
  const uint panel = 2 * group.x + thread_index / 64, row = thread_index % 16;
  const uint block_in_tile = thread_index / 16 % 4, block = first / 16 + block_in_tile;
  uint word = 0x55555555u; // weights 0
  if (panel < panels && block < k_blocks)
    word = ((device const uint *)w)[(ulong(panel) * k_blocks + block) * 16 + row];
  threadgroup half *to = weights + (thread_index / 64 * 16 + row) * TILE_K + 16 * block_in_tile;
  for (uint f = 0; f < 4; f++)
    for (uint c = 0; c < 4; c++)
      to[4 * f + c] = half(int(word >> (8 * c + 2 * f) & 3u) - 1);
  // And 8 times four activations: 64 tokens x 16 of them.
  for (uint i = 0; i < 8; i++) {
    const uint token_in_tile = 8 * i + thread_index / 16, column = 4 * (thread_index % 16);
    const uint token = TILE_TOKENS * group.y + token_in_tile;
    threadgroup half *four = activations + token_in_tile * TILE_K + column;
    if (token < tokens && first + column < 16 * k_blocks) {
      device const char *from = q + ulong(token) * k_blocks * 16 + first + column;
      const char4 codes = ((device const char4 *)from)[0];
      four[0] = half(int(codes.x));
      four[1] = half(int(codes.y));
      four[2] = half(int(codes.z));
      four[3] = half(int(codes.w));
    } else {
      four[0] = four[1] = four[2] = four[3] = half(0);
    }
  }
}

inline void store_result(constant ternary_gemm_params &params, device float *y,
                         device const float *s, device const float *bias, uint token, uint row,
                         float acc) {
  if (token >= params.tokens || row >= params.rows)
    return;
  const float quotient = acc / s[token];
  const float value = quotient * params.w_scale;
  y[ulong(token) * params.rows + row] = params.has_bias != 0 ? value + bias[row] : value;
}

kernel void ternary_gemm(constant ternary_gemm_params &params [[buffer(0)]],
                         device float *y [[buffer(1)]],
                         device const uchar *w [[buffer(2)]],
                         device const char *q [[buffer(3)]],
                         device const float *s [[buffer(4)]],
                         device const float *bias [[buffer(5)]],
                         threadgroup half *weights THREADGROUP_MEMORY(0),     // 32 x 64
                         threadgroup half *activations THREADGROUP_MEMORY(1), // 64 x 64
                         uint2 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]]) {
  const uint panels = (params.rows + 15) / 16;
  const uint row = thread_index % 8, token = thread_index / 8; // then every 8th and every 16th
  float sum[4][4];
  for (uint i = 0; i < 4; i++)
    for (uint j = 0; j < 4; j++)
      sum[i][j] = 0.0f;
  for (uint first = 0; first < 16 * params.k_blocks; first += TILE_K) {
    load_tiles(weights, activations, w, q, params.k_blocks, panels, params.tokens, group, first,
               thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < TILE_K; k++) {
      float a[4], b[4];
      for (uint i = 0; i < 4; i++) {
        a[i] = float(weights[(row + 8 * i) * TILE_K + k]);
        b[i] = float(activations[(token + 16 * i) * TILE_K + k]);
      }
      for (uint i = 0; i < 4; i++)
        for (uint j = 0; j < 4; j++)
          sum[i][j] = fma(a[i], b[j], sum[i][j]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint i = 0; i < 4; i++)
    for (uint j = 0; j < 4; j++)
      store_result(params, y, s, bias, TILE_TOKENS * group.y + token + 16 * j,
                   TILE_ROWS * group.x + row + 8 * i, sum[i][j]);
}

kernel void ternary_gemm_matrix(constant ternary_gemm_params &params [[buffer(0)]],
                                device float *y [[buffer(1)]],
                                device const uchar *w [[buffer(2)]],
                                device const char *q [[buffer(3)]],
                                device const float *s [[buffer(4)]],
                                device const float *bias [[buffer(5)]],
                                threadgroup half *weights THREADGROUP_MEMORY(0),     // 32 x 64
                                threadgroup half *activations THREADGROUP_MEMORY(1), // 64 x 64
                                threadgroup float *results THREADGROUP_MEMORY(2),    // 32 x 64
                                uint2 group [[threadgroup_position_in_grid]],
                                uint thread_index [[thread_index_in_threadgroup]],
                                uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint panels = (params.rows + 15) / 16;
  // A simdgroup has 16 rows and 32 tokens: 2 x 4 matrices.
  const uint first_row = simdgroup % 2 * 16, first_token = simdgroup / 2 * 32;
  simdgroup_float8x8 sum[2][4];
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 4; j++)
      sum[i][j] = simdgroup_float8x8(0.0f);
  for (uint first = 0; first < 16 * params.k_blocks; first += TILE_K) {
    load_tiles(weights, activations, w, q, params.k_blocks, panels, params.tokens, group, first,
               thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < TILE_K; k += 8) {
      simdgroup_half8x8 a[2], b[4];
      for (uint i = 0; i < 2; i++)
        simdgroup_load(a[i], weights + (first_row + 8 * i) * TILE_K + k, TILE_K);
      for (uint j = 0; j < 4; j++) // transposed: columns are tokens
        simdgroup_load(b[j], activations + (first_token + 8 * j) * TILE_K + k, TILE_K,
                       ulong2(0, 0), true);
      for (uint i = 0; i < 2; i++)
        for (uint j = 0; j < 4; j++)
          simdgroup_multiply_accumulate(sum[i][j], a[i], b[j], sum[i][j]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 4; j++)
      simdgroup_store(sum[i][j],
                      results + (first_row + 8 * i) * TILE_TOKENS + first_token + 8 * j,
                      TILE_TOKENS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < TILE_ROWS * TILE_TOKENS; i += 128)
    store_result(params, y, s, bias, TILE_TOKENS * group.y + i / TILE_ROWS,
                 TILE_ROWS * group.x + i % TILE_ROWS,
                 results[i % TILE_ROWS * TILE_TOKENS + i / TILE_ROWS]);
}
