// SPDX-License-Identifier: MIT
// y[t] = table[ids[t]] * multiplier; rows of float32, float16 or bfloat16, or of a quantised head
// (cython_kernels/include/head_layout.h): code * scale.
// An id outside the vocabulary reads row 0, as the engine's does: the host has refused it before.
//
// Grid     (ceil(width / 256), tokens) threadgroups of 256 threads, an element a thread.
// Traffic  the row's bytes once; of a quantised head 4 bytes out of every line of 64 (and its scales).
// Roofline latency: one row, some kilobytes.
#include "numerics.h"

struct embed_params {
  uint width;
  uint vocab;
  float multiplier;
};

inline uint token_id(device const int *ids, uint token, uint vocab) {
  uint id = uint(ids[token]);
  return id < vocab ? id : 0;
}

kernel void embed_f32(constant embed_params &params [[buffer(0)]],
                      device float *y [[buffer(1)]],
                      device const float *table [[buffer(2)]],
                      device const int *ids [[buffer(3)]],
                      uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const ulong row = token_id(ids, at.y, params.vocab);
  y[ulong(at.y) * params.width + at.x] = table[row * params.width + at.x] * params.multiplier;
}

kernel void embed_f16(constant embed_params &params [[buffer(0)]],
                      device float *y [[buffer(1)]],
                      device const ushort *table [[buffer(2)]],
                      device const int *ids [[buffer(3)]],
                      uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const ulong row = token_id(ids, at.y, params.vocab);
  const float value = f16_to_f32(table[row * params.width + at.x]);
  y[ulong(at.y) * params.width + at.x] = value * params.multiplier;
}

kernel void embed_bf16(constant embed_params &params [[buffer(0)]],
                       device float *y [[buffer(1)]],
                       device const ushort *table [[buffer(2)]],
                       device const int *ids [[buffer(3)]],
                       uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const ulong row = token_id(ids, at.y, params.vocab);
  const float value = bf16_to_f32(table[row * params.width + at.x]);
  y[ulong(at.y) * params.width + at.x] = value * params.multiplier;
}

kernel void head_embed_i8(constant embed_params &params [[buffer(0)]],
                          device float *y [[buffer(1)]],
                          device const uchar *table [[buffer(2)]],
                          device const int *ids [[buffer(3)]],
                          uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const uint id = token_id(ids, at.y, params.vocab), row = id % 16, lines = (params.width + 3) / 4;
  device const uchar *panel = table + ulong(id / 16) * (64 + ulong(lines) * 64);
  const float scale = ((device const float *)panel)[row];
  const char code = ((device const char *)panel)[64 + ulong(at.x / 4) * 64 + 4 * row + at.x % 4];
  const float value = float(code) * scale;
  y[ulong(at.y) * params.width + at.x] = value * params.multiplier;
}

kernel void head_embed_i4(constant embed_params &params [[buffer(0)]],
                          device float *y [[buffer(1)]],
                          device const uchar *table [[buffer(2)]],
                          device const int *ids [[buffer(3)]],
                          uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const uint id = token_id(ids, at.y, params.vocab), row = id % 16;
  const uint blocks = (params.width + 63) / 64, column = at.x % 64, c = column % 8;
  device const uchar *block = table + (ulong(id / 16) * blocks + at.x / 64) * 576;
  const float scale = f16_to_f32(((device const ushort *)block)[column / 32 * 16 + row]);
  const uint word = ((device const uint *)(block + 64))[column / 8 * 16 + row];
  const int code = int(word >> (16 * (c % 2) + 4 * (c / 2)) & 15u) - 8;
  const float value = float(code) * scale;
  y[ulong(at.y) * params.width + at.x] = value * params.multiplier;
}
