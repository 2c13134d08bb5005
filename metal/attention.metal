// SPDX-License-Identifier: MIT
// out[t][h] = softmax(scale * q[t][h] K^T) V over cache rows 0 .. position + t of the key/value head
// that h shares, in one pass: an online softmax by blocks of 64 keys, in the order that
// scalar/attention.c defines, so that the bits are the engine's.
//
// Grid     (kv_heads * ceil(group / 4), tokens) threadgroups of 256 threads: up to 4 query heads that
//          share a key/value head. Scores: four threads a key, each with 4 of the 16 lanes of a dot
//          product. Softmax: a simdgroup a head. Values: a thread has elements of the output.
// Traffic  keys and values once for each 4 query heads of a token, int8 and int4 as their codes.
// Roofline memory up to some hundred keys; then latency: an output is a chain of n_keys additions,
//          about 12 us for 2048 keys on an M1, in each layer.
#include "rows.h"

#define BLOCK_KEYS 64u
#define HEAD_TILE 4u

struct attention_params {
  uint heads;
  uint kv_heads;
  uint head_dim;
  uint position;
  uint row_bytes;
  uint scales_at; // from the head's start
  uint head_bytes;
  float scale;
};

// Rows of keys or values of one head. `four` gives elements d .. d + 3 and `upper` d + 16 .. d + 19
// of row j, zeros beyond head_dim; `value` element e of the two that thread i has, whose number is
// `element(i, e)`; `factor` what a row's product is to be multiplied by.
struct f32_rows {
  device const uchar *rows;
  uint head_dim;
  float4 at(ulong j, uint d) const {
    device const float *x = (device const float *)rows + j * head_dim + d;
    if (head_dim % 4 == 0 && d < head_dim)
      return ((device const float4 *)x)[0];
    return float4(d < head_dim ? x[0] : 0.0f, d + 1 < head_dim ? x[1] : 0.0f,
                  d + 2 < head_dim ? x[2] : 0.0f, d + 3 < head_dim ? x[3] : 0.0f);
  }
  void eight(ulong j, uint d, thread float4 &low, thread float4 &high) const {
    low = at(j, d);
    high = at(j, d + 16);
  }
  static uint element(uint i, uint e) { return i + 256 * e; }
  float value(ulong j, uint i, uint e) const {
    return ((device const float *)rows)[j * head_dim + element(i, e)];
  }
  float factor(ulong j) const { return 1.0f; }
};

struct f16_rows {
  device const uchar *rows;
  uint head_dim;
  float4 at(ulong j, uint d) const {
    device const ushort *x = (device const ushort *)rows + j * head_dim + d;
    ushort4 bits = ushort4(0, 0, 0, 0);
    if (head_dim % 4 == 0 && d < head_dim)
      bits = ((device const ushort4 *)x)[0];
    else
      bits = ushort4(d < head_dim ? x[0] : 0, d + 1 < head_dim ? x[1] : 0,
                     d + 2 < head_dim ? x[2] : 0, d + 3 < head_dim ? x[3] : 0);
    return float4(f16_to_f32(bits.x), f16_to_f32(bits.y), f16_to_f32(bits.z), f16_to_f32(bits.w));
  }
  void eight(ulong j, uint d, thread float4 &low, thread float4 &high) const {
    low = at(j, d);
    high = at(j, d + 16);
  }
  static uint element(uint i, uint e) { return i + 256 * e; }
  float value(ulong j, uint i, uint e) const {
    return f16_to_f32(((device const ushort *)rows)[j * head_dim + element(i, e)]);
  }
  float factor(ulong j) const { return 1.0f; }
};

struct i8_rows {
  device const uchar *rows;
  device const uchar *scales;
  uint head_dim;
  uint row_bytes;
  float4 at(ulong j, uint d) const {
    if (d >= row_bytes)
      return float4(0.0f, 0.0f, 0.0f, 0.0f);
    char4 codes = ((device const char4 *)(rows + j * row_bytes + d))[0];
    return float4(float(codes.x), float(codes.y), float(codes.z), float(codes.w));
  }
  void eight(ulong j, uint d, thread float4 &low, thread float4 &high) const {
    low = at(j, d);
    high = at(j, d + 16);
  }
  static uint element(uint i, uint e) { return i + 256 * e; }
  float value(ulong j, uint i, uint e) const {
    return float(((device const char *)rows)[j * row_bytes + element(i, e)]);
  }
  float factor(ulong j) const { return ((device const float *)scales)[j]; }
};

// Byte i of a group of 32 has element i in its low and i + 16 in its high four bits.
struct i4_rows {
  device const uchar *rows;
  device const uchar *scales;
  uint head_dim;
  uint row_bytes;
  float group_scale(ulong j, uint group) const {
    return bf16_to_f32(((device const ushort *)scales)[j * (row_bytes / 16) + group]);
  }
  static float code(uint byte, uint high) { return float(int(byte >> (4 * high) & 15u) - 8); }
  void eight(ulong j, uint d, thread float4 &low, thread float4 &high) const {
    uchar4 b = ((device const uchar4 *)(rows + j * row_bytes + d / 32 * 16 + d % 16))[0];
    float s = group_scale(j, d / 32);
    low = float4(code(b.x, 0) * s, code(b.y, 0) * s, code(b.z, 0) * s, code(b.w, 0) * s);
    high = float4(code(b.x, 1) * s, code(b.y, 1) * s, code(b.z, 1) * s, code(b.w, 1) * s);
  }
  static uint element(uint i, uint e) { return i / 16 * 32 + i % 16 + 16 * e; }
  float value(ulong j, uint i, uint e) const {
    return code(rows[j * row_bytes + i], e) * group_scale(j, i / 16);
  }
  float factor(ulong j) const { return 1.0f; }
};

inline void add_products(thread float4 &lanes, float4 key, threadgroup const float *query) {
  lanes.x = multiply_add(query[0], key.x, lanes.x);
  lanes.y = multiply_add(query[1], key.y, lanes.y);
  lanes.z = multiply_add(query[2], key.z, lanes.z);
  lanes.w = multiply_add(query[3], key.w, lanes.w);
}

// memory: HEAD_TILE queries padded with zeros to 32, HEAD_TILE x 64 scores, HEAD_TILE factors.
template <class Rows>
inline void attend(constant attention_params &params, device float *y, device const float *q,
                   Rows keys, Rows values, threadgroup float *memory, uint2 group,
                   uint thread_index, uint lane, uint simdgroup) {
  const uint head_dim = params.head_dim, padded = (head_dim + 31) / 32 * 32;
  const uint share = params.heads / params.kv_heads, tiles = (share + HEAD_TILE - 1) / HEAD_TILE;
  const uint first_head = group.x / tiles * share + group.x % tiles * HEAD_TILE;
  const uint heads = min(HEAD_TILE, share - group.x % tiles * HEAD_TILE);
  const uint n_keys = params.position + group.y + 1;
  threadgroup float *queries = memory;
  threadgroup float *scores = queries + HEAD_TILE * padded;
  threadgroup float *factors = scores + HEAD_TILE * BLOCK_KEYS;
  const ulong row = (ulong(group.y) * params.heads + first_head) * head_dim;
  for (uint i = thread_index; i < heads * padded; i += 256)
    queries[i] = i % padded < head_dim ? q[row + i / padded * head_dim + i % padded] : 0.0f;
  float out[HEAD_TILE][2];
  for (uint h = 0; h < HEAD_TILE; h++)
    out[h][0] = out[h][1] = 0.0f;
  float largest = -INFINITY, sum = 0.0f; // of head `simdgroup`; lane i < 16 has lane i of the sum
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint first = 0; first < n_keys; first += BLOCK_KEYS) {
    const uint n = min(BLOCK_KEYS, n_keys - first);
    const uint key = thread_index / 4;
    float4 dots[HEAD_TILE];
    for (uint h = 0; h < HEAD_TILE; h++)
      dots[h] = float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (key < n)
      for (uint d = thread_index % 4 * 4; d < head_dim; d += 32) {
        float4 low, high;
        keys.eight(first + key, d, low, high);
        for (uint h = 0; h < HEAD_TILE; h++)
          if (h < heads) {
            add_products(dots[h], low, queries + h * padded + d);
            add_products(dots[h], high, queries + h * padded + d + 16);
          }
      }
    const float key_factor = key < n ? keys.factor(first + key) : 1.0f;
    for (uint h = 0; h < HEAD_TILE; h++) {
      const float dot = tree_sum_of_quarters(dots[h].x, dots[h].y, dots[h].z, dots[h].w);
      const float scaled = dot * key_factor;
      if (h < heads && key < n && thread_index % 4 == 0)
        scores[h * BLOCK_KEYS + key] = scaled * params.scale;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (simdgroup < heads) {
      threadgroup float *s = scores + simdgroup * BLOCK_KEYS;
      const bool has_a = lane < n, has_b = lane + 32 < n;
      const float a = has_a ? s[lane] : 0.0f, b = has_b ? s[lane + 32] : 0.0f;
      float top = largest; // a NaN is ignored
      top = has_a && a > top ? a : top;
      top = has_b && b > top ? b : top;
      top = simd_max(top);
      float correction = 1.0f;
      if (top > largest) {
        correction = exp_f32(largest - top);
        sum = sum * correction;
        largest = top;
      }
      const float weight_a = has_a ? exp_f32(a - largest) : 0.0f;
      const float weight_b = has_b ? exp_f32(b - largest) : 0.0f;
      const float upper_a = simd_shuffle_down(weight_a, 16);
      const float upper_b = simd_shuffle_down(weight_b, 16);
      if (has_a)
        s[lane] = weight_a;
      if (has_b)
        s[lane + 32] = weight_b;
      if (lane < 16) { // keys lane, lane + 16, ... in their order; + 0 changes no lane
        sum = sum + weight_a;
        sum = sum + upper_a;
        sum = sum + weight_b;
        sum = sum + upper_b;
      }
      if (lane == 0)
        factors[simdgroup] = correction;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint e = 0; e < 2; e++)
      if (Rows::element(thread_index, e) < head_dim) {
        for (uint h = 0; h < HEAD_TILE; h++)
          if (h < heads)
            out[h][e] = out[h][e] * factors[h];
        for (uint j = 0; j < n; j++) {
          const float value = values.value(first + j, thread_index, e);
          const float factor = values.factor(first + j);
          for (uint h = 0; h < HEAD_TILE; h++)
            if (h < heads) {
              const float weight = scores[h * BLOCK_KEYS + j] * factor;
              out[h][e] = multiply_add(weight, value, out[h][e]);
            }
        }
      }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  if (simdgroup < heads) {
    const float total = tree_sum(lane < 16 ? sum : 0.0f);
    if (lane == 0)
      factors[simdgroup] = 1.0f / total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint e = 0; e < 2; e++) {
    const uint d = Rows::element(thread_index, e);
    for (uint h = 0; h < heads; h++)
      if (d < head_dim)
        y[row + h * head_dim + d] = out[h][e] * factors[h];
  }
}

// The start of the key/value head that a threadgroup reads.
inline ulong cache_head(constant attention_params &params, uint group) {
  const uint tiles = (params.heads / params.kv_heads + HEAD_TILE - 1) / HEAD_TILE;
  return ulong(group / tiles) * params.head_bytes;
}

kernel void attention_f32(constant attention_params &params [[buffer(0)]],
                          device float *y [[buffer(1)]],
                          device const float *q [[buffer(2)]],
                          device const uchar *k_cache [[buffer(3)]],
                          device const uchar *v_cache [[buffer(4)]],
                          threadgroup float *memory THREADGROUP_MEMORY(0),
                          uint2 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const ulong head = cache_head(params, group.x);
  f32_rows keys = {k_cache + head, params.head_dim};
  f32_rows values = {v_cache + head, params.head_dim};
  attend(params, y, q, keys, values, memory, group, thread_index, lane, simdgroup);
}

kernel void attention_f16(constant attention_params &params [[buffer(0)]],
                          device float *y [[buffer(1)]],
                          device const float *q [[buffer(2)]],
                          device const uchar *k_cache [[buffer(3)]],
                          device const uchar *v_cache [[buffer(4)]],
                          threadgroup float *memory THREADGROUP_MEMORY(0),
                          uint2 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const ulong head = cache_head(params, group.x);
  f16_rows keys = {k_cache + head, params.head_dim};
  f16_rows values = {v_cache + head, params.head_dim};
  attend(params, y, q, keys, values, memory, group, thread_index, lane, simdgroup);
}

kernel void attention_i8(constant attention_params &params [[buffer(0)]],
                         device float *y [[buffer(1)]],
                         device const float *q [[buffer(2)]],
                         device const uchar *k_cache [[buffer(3)]],
                         device const uchar *v_cache [[buffer(4)]],
                         threadgroup float *memory THREADGROUP_MEMORY(0),
                         uint2 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const ulong head = cache_head(params, group.x), scales = head + params.scales_at;
  i8_rows keys = {k_cache + head, k_cache + scales, params.head_dim, params.row_bytes};
  i8_rows values = {v_cache + head, v_cache + scales, params.head_dim, params.row_bytes};
  attend(params, y, q, keys, values, memory, group, thread_index, lane, simdgroup);
}

kernel void attention_i4(constant attention_params &params [[buffer(0)]],
                         device float *y [[buffer(1)]],
                         device const float *q [[buffer(2)]],
                         device const uchar *k_cache [[buffer(3)]],
                         device const uchar *v_cache [[buffer(4)]],
                         threadgroup float *memory THREADGROUP_MEMORY(0),
                         uint2 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const ulong head = cache_head(params, group.x), scales = head + params.scales_at;
  i4_rows keys = {k_cache + head, k_cache + scales, params.head_dim, params.row_bytes};
  i4_rows values = {v_cache + head, v_cache + scales, params.head_dim, params.row_bytes};
  attend(params, y, q, keys, values, memory, group, thread_index, lane, simdgroup);
}
