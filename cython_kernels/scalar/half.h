// SPDX-License-Identifier: MIT
// float16 and bfloat16 in integer arithmetic: the definition that F16C and NEON must equal.
#ifndef BITNET_EDGE_SCALAR_HALF_H
#define BITNET_EDGE_SCALAR_HALF_H

#include "scalar/float_bits.h"

static inline float be_bf16_to_f32(uint16_t x) { return be_bits_float((uint32_t)x << 16); }

// Exact for every number; a NaN keeps sign and payload and becomes quiet, as the hardware does.
static inline float be_f16_to_f32(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 0x1f, mantissa = x & 0x3ff;
  if (exponent == 0x1f)
    return be_bits_float(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
  if (exponent != 0)
    return be_bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
  // Zero and denormals, mantissa * 2^-24: put the mantissa below 2^-14 and take 2^-14 off again.
  float magnitude = be_bits_float(0x38800000 | mantissa << 13) - 0x1p-14f;
  return be_bits_float(be_float_bits(magnitude) | sign);
}

// Round half to even; overflow gives infinity; every NaN becomes 0x7e00, because the sign of a
// computed NaN differs between x86 and ARM.
static inline uint16_t be_f32_to_f16(float x) {
  uint32_t bits = be_float_bits(x), magnitude = bits & 0x7fffffff;
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000)
    return 0x7e00;
  if (magnitude >= 0x47800000) // 65536 and above; 65520..65536 round up to infinity below
    return (uint16_t)(sign | 0x7c00);
  uint32_t shift = 13, value = magnitude - 0x38000000; // exponent re-biased from 127 to 15
  if (magnitude < 0x38800000) {                        // below 2^-14: a denormal, or zero
    shift = 126 - (magnitude >> 23);
    if (shift > 24)
      return sign; // below 2^-25
    value = (magnitude & 0x7fffff) | 0x800000;
  }
  uint32_t half = 1u << (shift - 1), result = value >> shift, rest = value & (2 * half - 1);
  result += rest > half || (rest == half && (result & 1)); // may carry into the exponent: right
  return (uint16_t)(sign | result);
}

#endif
