// SPDX-License-Identifier: MIT
// rope_angles  y[t] = cos and sin of (position + t) * inv_freq[i], times scale (engine/angles.c: our
//              polynomials in double precision, here in soft_double.h)
// rope         y[i] = x[i] cos[i] - x[i + half] sin[i];  y[i + half] = x[i + half] cos[i] + x[i] sin[i],
//              head by head; y may be x
//
// Grid     rope_angles: (ceil(half / 32), tokens) threadgroups of 32; rope: (ceil(heads * half / 256),
//          tokens) of 256, a pair a thread.
// Traffic  8 bytes in and out a pair, and the angles from cache.
// Roofline latency of one small launch; the double arithmetic is some 40 operations of 50
//          instructions, once a token for all layers.
#include "soft_double.h"

struct rope_angles_params {
  uint half_dim;
  uint position;
  float scale;
};

struct rope_params {
  uint heads;
  uint half_dim;
};

inline soft_double sin_polynomial(soft_double r) {
  const soft_double z = r * r;
  soft_double p = make_double(0x3de5d93a5acfd57cul);  //  1.58969099521155010221e-10
  p = p * z + make_double(0xbe5ae5e68a2b9cebul);      // -2.50507602534068634195e-08
  p = p * z + make_double(0x3ec71de357b1fe7dul);      //  2.75573137070700676789e-06
  p = p * z + make_double(0xbf2a01a019c161d5ul);      // -1.98412698298579493134e-04
  p = p * z + make_double(0x3f8111111110f8a6ul);      //  8.33333333332248946124e-03
  p = p * z + make_double(0xbfc5555555555549ul);      // -1.66666666666666324348e-01
  return r + r * z * p;
}

inline soft_double cos_polynomial(soft_double r) {
  const soft_double z = r * r;
  soft_double p = make_double(0xbda8fae9be8838d4ul);  // -1.13596475577881948265e-11
  p = p * z + make_double(0x3e21ee9ebdb4b1c4ul);      //  2.08757232129817482790e-09
  p = p * z + make_double(0xbe927e4f809c52adul);      // -2.75573143513906633035e-07
  p = p * z + make_double(0x3efa01a019cb1590ul);      //  2.48015872894767294178e-05
  p = p * z + make_double(0xbf56c16c16c15177ul);      // -1.38888888888741095749e-03
  p = p * z + make_double(0x3fa555555555554cul);      //  4.16666666666666019037e-02
  const soft_double half_z = make_double(0x3fe0000000000000ul) * z;
  return make_double(0x3ff0000000000000ul) - half_z + z * z * p;
}

kernel void rope_angles(constant rope_angles_params &params [[buffer(0)]],
                        device float *y [[buffer(1)]],
                        device const float *inv_freq [[buffer(2)]],
                        uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.half_dim)
    return;
  device float *cosine = y + ulong(at.y) * 2 * params.half_dim + at.x;
  device float *sine = cosine + params.half_dim;
  const float angle = float(params.position + at.y) * inv_freq[at.x];
  if (!(angle >= -0x1p21f && angle <= 0x1p21f)) { // also NaN
    *cosine = *sine = NAN;
    return;
  }
  const soft_double x = to_double(angle);
  const soft_double two_over_pi = make_double(0x3fe45f306dc9c883ul);
  const soft_double rounding = make_double(x.bits != DOUBLE_SIGN && (x.bits & DOUBLE_SIGN) != 0
                                               ? 0xbfe0000000000000ul  // -0.5
                                               : 0x3fe0000000000000ul); // 0.5
  const int n = to_int(x * two_over_pi + rounding);
  const soft_double turns = to_double(n);
  const soft_double r = (x - turns * make_double(0x3ff921fb54400000ul)) - // pi / 2 in two parts
                        turns * make_double(0x3dd0b4611a626331ul);
  const float s = to_float(sin_polynomial(r)), c = to_float(cos_polynomial(r));
  const float quadrant_sine = (n & 1) != 0 ? c : s, quadrant_cosine = (n & 1) != 0 ? s : c;
  *sine = ((n & 2) != 0 ? -quadrant_sine : quadrant_sine) * params.scale;
  *cosine = (((n + 1) & 2) != 0 ? -quadrant_cosine : quadrant_cosine) * params.scale;
}

kernel void rope(constant rope_params &params [[buffer(0)]],
                 device float *y [[buffer(1)]],
                 device const float *x [[buffer(2)]],
                 device const float *angles [[buffer(3)]],
                 uint2 at [[thread_position_in_grid]]) {
  const uint half_dim = params.half_dim;
  if (at.x >= params.heads * half_dim)
    return;
  const uint i = at.x % half_dim;
  const ulong first = (ulong(at.y) * params.heads + at.x / half_dim) * 2 * half_dim + i;
  device const float *angle = angles + ulong(at.y) * 2 * half_dim + i;
  const float a = x[first], b = x[first + half_dim], cosine = angle[0], sine = angle[half_dim];
  const float a_cos = a * cosine, b_sin = b * sine, b_cos = b * cosine, a_sin = a * sine;
  y[first] = a_cos - b_sin;
  y[first + half_dim] = b_cos + a_sin;
}
