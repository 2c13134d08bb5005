// SPDX-License-Identifier: MIT
// quantize_kv_i4.
#include <math.h>
#include <string.h>

#include "kernel_check.h"

static float bf16_value(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

// Independent of the kernel: rounding by frexp and nearbyint in double precision.
static void expect_group(const uint8_t *codes, uint16_t scale, const float *x, size_t n) {
  double extreme = 0;
  for (size_t i = 0; i < n; i++) // the positive one of two equals
    if (fabs((double)x[i]) > fabs(extreme) || (fabs((double)x[i]) == fabs(extreme) && x[i] > 0))
      extreme = (double)x[i];
  double magnitude = fmax(fabs(extreme), (double)1e-30f);
  int exponent = 0;
  double fraction = isinf(magnitude) ? magnitude : frexp(magnitude / 8, &exponent);
  double expected = ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
  expected = extreme < 0 ? expected : -expected;
  float s = (float)expected;
  if (s != bf16_value(scale))
    kc_fail("scale: expected %a, got %a", expected, (double)bf16_value(scale));
  for (size_t i = 0; i < 32; i++) {
    double v = i < n ? nearbyint((double)(x[i] * (1.0f / s))) : 0;
    int code = isnan(v) ? 0 : v > 7 ? 7 : v < -8 ? -8 : (int)v;
    int got = (codes[i % 16] >> (i < 16 ? 0 : 4) & 15) - 8;
    if (code != got)
      kc_fail("code[%zu]: expected %d, got %d for %a", i, code, got, i < n ? (double)x[i] : 0.0);
  }
}

// Values at rounding ties: the extreme -8 gives scale 1.
static void fill_ties(float *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    x[i] = i % 32 == 7 ? -8.0f : (float)kc_random_below(16) - 7.5f;
}

static void check_quantize_case(const kc_variant *v, size_t n, int fill) {
  KC_FOR_EDGES(edge) {
    kc_begin(edge, "n=%zu fill=%s", n, fill < KC_FILL_COUNT ? kc_fill_name(fill) : "ties");
    size_t groups = (n + 31) / 32;
    float *x = kc_buffer(n * sizeof *x);
    uint8_t *codes = kc_buffer(groups * 16);
    uint16_t *scales = kc_buffer(groups * sizeof *scales);
    if (fill < KC_FILL_COUNT)
      kc_fill_f32(x, n, fill);
    else
      fill_ties(x, n);
    v->k->quantize_kv_i4(codes, scales, x, n);
    if (v->isa == BE_ISA_scalar) {
      for (size_t g = 0; g < groups; g++)
        expect_group(codes + g * 16, scales[g], x + g * 32, n - g * 32 < 32 ? n - g * 32 : 32);
    } else {
      static uint8_t expected_codes[BE_MAX_HEAD_DIM / 2];
      static uint16_t expected_scales[BE_MAX_HEAD_DIM / 32];
      quantize_kv_i4_scalar(expected_codes, expected_scales, x, n);
      kc_expect_u16("scales", expected_scales, scales, groups);
      kc_expect_i8("codes", (int8_t *)expected_codes, (int8_t *)codes, groups * 16);
    }
    kc_end();
  }
}

void check_quantize_kv_i4(const kc_variant *v) {
  for (int fill = 0; fill <= KC_FILL_COUNT; fill++) {
    for (size_t n = 1; n <= 130; n++)
      check_quantize_case(v, n, fill);
    check_quantize_case(v, BE_MAX_HEAD_DIM, fill);
  }
}

void bench_quantize_kv_i4(const kc_variant *v) {
  static float x[128];
  static uint8_t codes[64];
  static uint16_t scales[4];
  kc_fill_f32(x, 128, KC_FILL_NORMAL);
  for (kc_timer timer = kc_timer_begin(v, "head_dim=128", 128 * 4.0 + 72, 128);
       kc_timer_next(&timer);)
    for (size_t i = 0; i < timer.repeats; i++)
      v->k->quantize_kv_i4(codes, scales, x, 128);
}
