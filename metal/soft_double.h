// SPDX-License-Identifier: MIT
// IEEE double addition and multiplication in integers, for the one place that needs their bits:
// rope angles (Metal has no double). Round half to even; zeros are exact; denormals, infinities and
// NaN do not occur there and are not handled.
#ifndef BITNET_EDGE_METAL_SOFT_DOUBLE_H
#define BITNET_EDGE_METAL_SOFT_DOUBLE_H

#include "numerics.h"

#define DOUBLE_SIGN 0x8000000000000000ul
#define DOUBLE_HIDDEN 0x0010000000000000ul
#define DOUBLE_MANTISSA 0x000ffffffffffffful

struct soft_double {
  ulong bits;
};

inline soft_double make_double(ulong bits) {
  soft_double x;
  x.bits = bits;
  return x;
}

// 2^(exponent - 1075) * mantissa / 8, rounded; mantissa has the three extra bits and, below them,
// whatever was shifted out in its lowest. 2^55 <= mantissa < 2^56.
inline soft_double round_double(ulong sign, int exponent, ulong mantissa) {
  ulong kept = mantissa >> 3, rest = mantissa & 7ul;
  kept += (rest > 4ul || (rest == 4ul && (kept & 1ul) != 0)) ? 1ul : 0ul;
  // A carry to 2^53 raises the exponent by itself.
  return make_double(sign | ((ulong(exponent) << 52) + (kept - DOUBLE_HIDDEN)));
}

// x >> n, the bits lost collected in the lowest.
inline ulong shift_sticky(ulong x, int n) {
  if (n > 62)
    return x != 0 ? 1ul : 0ul;
  return x >> n | ((x & ((1ul << n) - 1ul)) != 0 ? 1ul : 0ul);
}

inline soft_double operator+(soft_double a, soft_double b) {
  if ((a.bits & ~DOUBLE_SIGN) < (b.bits & ~DOUBLE_SIGN)) {
    ulong kept = a.bits;
    a.bits = b.bits;
    b.bits = kept;
  }
  ulong sign = a.bits & DOUBLE_SIGN;
  if ((a.bits & ~DOUBLE_SIGN) == 0) // -0 of two -0, else +0
    return make_double(a.bits & b.bits);
  if ((b.bits & ~DOUBLE_SIGN) == 0)
    return a;
  int exponent = int(a.bits >> 52 & 0x7fful), below = exponent - int(b.bits >> 52 & 0x7fful);
  ulong x = (DOUBLE_HIDDEN | (a.bits & DOUBLE_MANTISSA)) << 3;
  ulong y = shift_sticky((DOUBLE_HIDDEN | (b.bits & DOUBLE_MANTISSA)) << 3, below);
  if (((a.bits ^ b.bits) & DOUBLE_SIGN) == 0) {
    ulong sum = x + y;
    if ((sum >> 56) != 0) {
      sum = shift_sticky(sum, 1);
      exponent++;
    }
    return round_double(sign, exponent, sum);
  }
  ulong difference = x - y;
  if (difference == 0)
    return make_double(0);
  while ((difference >> 55) == 0) {
    difference <<= 1;
    exponent--;
  }
  return round_double(sign, exponent, difference);
}

inline soft_double operator-(soft_double a, soft_double b) {
  return a + make_double(b.bits ^ DOUBLE_SIGN);
}

inline soft_double operator*(soft_double a, soft_double b) {
  const ulong sign = (a.bits ^ b.bits) & DOUBLE_SIGN;
  if ((a.bits & ~DOUBLE_SIGN) == 0 || (b.bits & ~DOUBLE_SIGN) == 0)
    return make_double(sign);
  int exponent = int(a.bits >> 52 & 0x7fful) + int(b.bits >> 52 & 0x7fful) - 1023;
  const ulong x = DOUBLE_HIDDEN | (a.bits & DOUBLE_MANTISSA);
  const ulong y = DOUBLE_HIDDEN | (b.bits & DOUBLE_MANTISSA);
  // 106 bits from 32-bit halves: high * 2^64 + low.
  const ulong x0 = x & 0xfffffffful, x1 = x >> 32, y0 = y & 0xfffffffful, y1 = y >> 32;
  const ulong middle = x1 * y0 + (x0 * y0 >> 32), other = x0 * y1 + (middle & 0xfffffffful);
  const ulong high = x1 * y1 + (middle >> 32) + (other >> 32);
  const ulong low = other << 32 | (x0 * y0 & 0xfffffffful);
  // The product is in [2^104, 2^106); 56 bits of it are wanted, the rest is sticky.
  ulong mantissa = high << 15 | low >> 49;
  mantissa |= (low << 15) != 0 ? 1ul : 0ul;
  if ((mantissa >> 56) != 0) {
    mantissa = shift_sticky(mantissa, 1);
    exponent++;
  }
  return round_double(sign, exponent, mantissa);
}

// A normal float, or zero; exact.
inline soft_double to_double(float x) {
  const uint bits = as_type<uint>(x);
  const ulong sign = ulong(bits >> 31) << 63;
  if ((bits & 0x7f800000u) == 0)
    return make_double(sign);
  return make_double(sign | ((ulong(bits & 0x7fffffffu) << 29) + (896ul << 52)));
}

inline soft_double to_double(int x) {
  if (x == 0)
    return make_double(0);
  ulong magnitude = x < 0 ? ulong(-long(x)) : ulong(x);
  int exponent = 1075;
  while ((magnitude >> 52) == 0) {
    magnitude <<= 1;
    exponent--;
  }
  return make_double((x < 0 ? DOUBLE_SIGN : 0ul) |
                     ((ulong(exponent) << 52) + (magnitude - DOUBLE_HIDDEN)));
}

// Towards zero; |x| < 2^31.
inline int to_int(soft_double x) {
  const int exponent = int(x.bits >> 52 & 0x7fful) - 1075;
  if (exponent < -52)
    return 0;
  const int magnitude = int((DOUBLE_HIDDEN | (x.bits & DOUBLE_MANTISSA)) >> -exponent);
  return (x.bits & DOUBLE_SIGN) != 0 ? -magnitude : magnitude;
}

// Round half to even; what is below the normal floats becomes zero.
inline float to_float(soft_double x) {
  const uint sign = uint(x.bits >> 63) << 31;
  const int exponent = int(x.bits >> 52 & 0x7fful) - 896;
  if (exponent <= 0)
    return as_type<float>(sign);
  uint kept = uint(exponent) << 23 | uint((x.bits & DOUBLE_MANTISSA) >> 29);
  const uint rest = uint(x.bits & 0x1ffffffful);
  kept += (rest > 0x10000000u || (rest == 0x10000000u && (kept & 1u) != 0)) ? 1u : 0u;
  return as_type<float>(sign | kept);
}

#endif
