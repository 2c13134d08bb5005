// SPDX-License-Identifier: MIT
// The numerics of the CPU engine, operation by operation, for every shader.
//
// Metal's specification makes +, -, *, /, sqrt, fma and conversions of float correctly rounded when
// fast math is off (metal/device.py switches it off), and the pragma forbids contraction. Then the
// functions below give the bits of cython_kernels/scalar/{exp,quantize,half,lanes}.h, wherever no
// denormal float appears: Apple GPUs may flush those.
#ifndef BITNET_EDGE_METAL_NUMERICS_H
#define BITNET_EDGE_METAL_NUMERICS_H

#include <metal_stdlib>
using namespace metal;

#pragma STDC FP_CONTRACT OFF

// Threadgroup memory whose length the host sets. tests/metal defines it away, where `threadgroup`
// is a macro.
#ifndef THREADGROUP_MEMORY
#define THREADGROUP_MEMORY(n) [[threadgroup(n)]]
#endif

#define SIMD_WIDTH 32u
#define ABSMAX_MIN 1e-5f
#define ROUND_MAGIC 12582912.0f // 1.5 * 2^23: adding it rounds to an integer, ties to even

// Product and then sum, two roundings: the product is a statement of its own, so that a compiler
// which contracts within expressions only has nothing to contract.
inline float multiply_add(float a, float b, float c) {
  float product = a * b;
  return product + c;
}

// The larger of m and |x|; a NaN is ignored.
inline float absmax(float m, float x) {
  float a = as_type<float>(as_type<uint>(x) & 0x7fffffffu);
  return a > m ? a : m;
}

// clamp(round_half_even(x * s), low, high) as an integer-valued float; NaN becomes 0.
inline float quantize_one(float x, float s, float low, float high) {
  float v = x * s;
  v = v == v ? v : 0.0f;
  v = v > low ? v : low;
  v = v < high ? v : high;
  float shifted = v + ROUND_MAGIC;
  return shifted - ROUND_MAGIC;
}

inline float bf16_to_f32(ushort x) { return as_type<float>(uint(x) << 16); }

// Exact for every number, denormals included, whatever the GPU does with those.
inline float f16_to_f32(ushort x) {
  uint sign = uint(x & 0x8000u) << 16, exponent = uint(x) >> 10 & 0x1fu, mantissa = x & 0x3ffu;
  if (exponent == 0x1fu)
    return as_type<float>(sign | 0x7f800000u | mantissa << 13 | (mantissa != 0 ? 0x400000u : 0u));
  if (exponent != 0)
    return as_type<float>(sign | (exponent + 112u) << 23 | mantissa << 13);
  float magnitude = as_type<float>(0x38800000u | mantissa << 13) - 0x1p-14f;
  return as_type<float>(as_type<uint>(magnitude) | sign);
}

// Round half to even; overflow gives infinity; every NaN becomes 0x7e00.
inline ushort f32_to_f16(float x) {
  uint bits = as_type<uint>(x), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  if (magnitude > 0x7f800000u)
    return 0x7e00;
  if (magnitude >= 0x47800000u)
    return ushort(sign | 0x7c00u);
  uint shift = 13, value = magnitude - 0x38000000u;
  if (magnitude < 0x38800000u) {
    shift = 126u - (magnitude >> 23);
    if (shift > 24)
      return ushort(sign);
    value = (magnitude & 0x7fffffu) | 0x800000u;
  }
  uint half_way = 1u << (shift - 1), result = value >> shift, rest = value & (2 * half_way - 1);
  result += (rest > half_way || (rest == half_way && (result & 1u) != 0)) ? 1u : 0u;
  return ushort(sign | result);
}

// exp: n = rne(x log2 e), r = x - n ln 2 in two parts, Cephes' polynomial, the exponent added to
// its bits. 0 below -87.3, +inf above 88.7228.
inline float exp_f32(float x) {
  float shifted = multiply_add(x, 0x1.715476p+0f, ROUND_MAGIC);
  float n = shifted - ROUND_MAGIC;
  float high = n * 0.693359375f;
  float low = n * -2.12194440e-4f;
  float r = (x - high) - low;
  float q = 1.9875691500e-4f;
  q = multiply_add(q, r, 1.3981999507e-3f);
  q = multiply_add(q, r, 8.3334519073e-3f);
  q = multiply_add(q, r, 4.1665795894e-2f);
  q = multiply_add(q, r, 1.6666665459e-1f);
  q = multiply_add(q, r, 5.0000001201e-1f);
  float square = r * r;
  float p = multiply_add(q, square, r) + 1.0f;
  float y = as_type<float>(as_type<uint>(p) + (as_type<uint>(shifted) << 23));
  if (!(x <= 0x1.62e42ep+6f))
    y = x * INFINITY;
  return x < -87.3f ? 0.0f : y;
}

#endif
