// SPDX-License-Identifier: MIT
// Sine and cosine by our own polynomials in double precision: libm differs between platforms.
//
// x = n * pi/2 + r with |r| <= pi/4, pi/2 in two parts (33 + 53 bits, so n * PIO2_HIGH is exact for
// n < 2^20); then the minimax polynomials of fdlibm's k_sin and k_cos (error < 2^-57), far below
// the half ULP of the float32 that is kept. Angles reach 2^20 positions * 1 rad = 2^20.
#include "angles.h"

static const double TWO_OVER_PI = 0x1.45f306dc9c883p-1;
static const double PIO2_HIGH = 0x1.921fb544p+0;
static const double PIO2_LOW = 0x1.0b4611a626331p-34;

static double sin_polynomial(double r) {
  double z = r * r;
  double p = 1.58969099521155010221e-10;
  p = p * z - 2.50507602534068634195e-08;
  p = p * z + 2.75573137070700676789e-06;
  p = p * z - 1.98412698298579493134e-04;
  p = p * z + 8.33333333332248946124e-03;
  p = p * z - 1.66666666666666324348e-01;
  return r + r * z * p;
}

static double cos_polynomial(double r) {
  double z = r * r;
  double p = -1.13596475577881948265e-11;
  p = p * z + 2.08757232129817482790e-09;
  p = p * z - 2.75573143513906633035e-07;
  p = p * z + 2.48015872894767294178e-05;
  p = p * z - 1.38888888888741095749e-03;
  p = p * z + 4.16666666666666019037e-02;
  return 1.0 - 0.5 * z + z * z * p;
}

void be_rope_angles(float *cos, float *sin, const float *inv_freq, size_t half, uint32_t position,
                    float scale) {
  for (size_t i = 0; i < half; i++) {
    float angle = (float)position * inv_freq[i];
    if (!(angle >= -0x1p21f && angle <= 0x1p21f)) { // also NaN; beyond the reduction's range
      cos[i] = sin[i] = __builtin_nanf("");
      continue;
    }
    double x = angle;
    int64_t n = (int64_t)(x * TWO_OVER_PI + (x < 0 ? -0.5 : 0.5));
    double r = (x - (double)n * PIO2_HIGH) - (double)n * PIO2_LOW;
    double s = sin_polynomial(r), c = cos_polynomial(r);
    double quadrant_sin = n & 1 ? c : s, quadrant_cos = n & 1 ? s : c;
    sin[i] = (float)(n & 2 ? -quadrant_sin : quadrant_sin) * scale;
    cos[i] = (float)((n + 1) & 2 ? -quadrant_cos : quadrant_cos) * scale;
  }
}
