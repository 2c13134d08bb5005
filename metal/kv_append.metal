// SPDX-License-Identifier: MIT
// Row position + t of every head of a KV cache (engine/kv_cache.h): x[t], rotated when angles are
// given, as float32, as float16, as int8 codes padded to 16 with the scale 1 / (127 / m), or as int4
// codes in groups of 32 with a bfloat16 scale (scalar/quantize_kv.h).
//
// Grid     (heads, tokens) threadgroups of one simdgroup, a row of a head each.
// Traffic  4 bytes in an element (twice for codes, from cache), the row's bytes out.
// Roofline latency: a few hundred bytes a head.
#include "numerics.h"

struct kv_append_params {
  uint heads;
  uint head_dim;
  uint position;
  uint has_angles;
  uint row_bytes;
  uint scales_at; // from the head's start
  uint head_bytes;
};

// Element d of the rotated head.
inline float rotated(device const float *x, device const float *angles, uint d, uint head_dim,
                     bool rotate) {
  if (!rotate)
    return x[d];
  const uint half_dim = head_dim / 2, i = d < half_dim ? d : d - half_dim;
  const float a = x[i], b = x[i + half_dim], cosine = angles[i], sine = angles[i + half_dim];
  const float straight = (d < half_dim ? a : b) * cosine;
  const float crossed = (d < half_dim ? b : a) * sine;
  return d < half_dim ? straight - crossed : straight + crossed;
}

// Where things are for one head of one token.
struct kv_place {
  device const float *x;
  device const float *angles;
  device uchar *head;
  ulong row;
};

inline kv_place place(constant kv_append_params &params, device uchar *cache,
                      device const float *x, device const float *angles, uint2 group) {
  kv_place at;
  at.x = x + (ulong(group.y) * params.heads + group.x) * params.head_dim;
  at.angles = angles + ulong(group.y) * params.head_dim;
  at.head = cache + ulong(group.x) * params.head_bytes;
  at.row = ulong(params.position) + group.y;
  return at;
}

kernel void kv_append_f32(constant kv_append_params &params [[buffer(0)]],
                          device uchar *cache [[buffer(1)]],
                          device const float *x [[buffer(2)]],
                          device const float *angles [[buffer(3)]],
                          uint2 group [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]]) {
  const kv_place at = place(params, cache, x, angles, group);
  device float *row = (device float *)(at.head + at.row * params.row_bytes);
  for (uint d = lane; d < params.head_dim; d += SIMD_WIDTH)
    row[d] = rotated(at.x, at.angles, d, params.head_dim, params.has_angles != 0);
}

kernel void kv_append_f16(constant kv_append_params &params [[buffer(0)]],
                          device uchar *cache [[buffer(1)]],
                          device const float *x [[buffer(2)]],
                          device const float *angles [[buffer(3)]],
                          uint2 group [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]]) {
  const kv_place at = place(params, cache, x, angles, group);
  device ushort *row = (device ushort *)(at.head + at.row * params.row_bytes);
  for (uint d = lane; d < params.head_dim; d += SIMD_WIDTH)
    row[d] = f32_to_f16(rotated(at.x, at.angles, d, params.head_dim, params.has_angles != 0));
}

kernel void kv_append_i8(constant kv_append_params &params [[buffer(0)]],
                         device uchar *cache [[buffer(1)]],
                         device const float *x [[buffer(2)]],
                         device const float *angles [[buffer(3)]],
                         uint2 group [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]]) {
  const kv_place at = place(params, cache, x, angles, group);
  const uint head_dim = params.head_dim, padded = (head_dim + 15) / 16 * 16;
  const bool rotate = params.has_angles != 0;
  float m = ABSMAX_MIN;
  for (uint d = lane; d < head_dim; d += SIMD_WIDTH)
    m = absmax(m, rotated(at.x, at.angles, d, head_dim, rotate));
  const float scale = 127.0f / simd_max(m);
  device char *row = (device char *)(at.head + at.row * params.row_bytes);
  for (uint d = lane; d < padded; d += SIMD_WIDTH) {
    float code = 0.0f;
    if (d < head_dim)
      code = quantize_one(rotated(at.x, at.angles, d, head_dim, rotate), scale, -128.0f, 127.0f);
    row[d] = char(int(code));
  }
  if (lane == 0)
    ((device float *)(at.head + params.scales_at))[at.row] = 1.0f / scale;
}

kernel void kv_append_i4(constant kv_append_params &params [[buffer(0)]],
                         device uchar *cache [[buffer(1)]],
                         device const float *x [[buffer(2)]],
                         device const float *angles [[buffer(3)]],
                         uint2 group [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]]) {
  const kv_place at = place(params, cache, x, angles, group);
  const uint head_dim = params.head_dim, groups = (head_dim + 31) / 32;
  device uchar *row = at.head + at.row * params.row_bytes;
  device ushort *scales = (device ushort *)(at.head + params.scales_at) + at.row * groups;
  for (uint g = 0; g < groups; g++) {
    const uint d = 32 * g + lane;
    const bool inside = d < head_dim;
    const float value =
        inside ? rotated(at.x, at.angles, d, head_dim, params.has_angles != 0) : 0.0f;
    const float low = simd_min(value < 0.0f ? value : 0.0f);
    const float high = simd_max(value > 0.0f ? value : 0.0f);
    float magnitude = -low > high ? -low : high;
    magnitude = magnitude > 1e-30f ? magnitude : 1e-30f;
    uint bits = as_type<uint>(magnitude * 0.125f);
    bits += 0x7fffu + (bits >> 16 & 1u);
    const uint scale = bits >> 16 | (-low > high ? 0u : 0x8000u);
    const float inverse = 1.0f / as_type<float>(scale << 16);
    const uint code = uint(int(quantize_one(value, inverse, -8.0f, 7.0f)) + 8);
    const uint upper = simd_shuffle_down(code, 16);
    if (lane < 16)
      row[16 * g + lane] = uchar(code | upper << 4);
    if (lane == 0)
      scales[g] = ushort(scale);
  }
}
