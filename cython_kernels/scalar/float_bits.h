// SPDX-License-Identifier: MIT
// Bits of floats, and round half to even without libm.
#ifndef BITNET_EDGE_SCALAR_FLOAT_BITS_H
#define BITNET_EDGE_SCALAR_FLOAT_BITS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t be_float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float be_bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// 1.5 * 2^23: between 2^23 and 2^24 floats are the integers, so adding it rounds |x| <= 2^22 to
// the nearest integer, ties to even, and leaves that integer in the low mantissa bits.
#define BE_ROUND_MAGIC 12582912.0f

#endif
