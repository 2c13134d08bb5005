// SPDX-License-Identifier: MIT
// What the NEON kernels share: 16 float lanes in four registers, their tree, exp, and loads of
// ragged tails that never touch a byte past the end.
//
// The baseline is ARMv8.0 without any extension; everything also compiles for 32-bit NEON, which
// lacks division, rounding conversions and the horizontal instructions. 32-bit NEON flushes
// denormals to zero whatever FPSCR says: results equal the scalar ones there as long as no operand
// and no result is denormal. No multiply-accumulate of floats is used: it would contract.
#ifndef BITNET_EDGE_ARM_NEON_H
#define BITNET_EDGE_ARM_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "kernels.h"
#include "scalar/exp.h"
#include "scalar/half.h"
#include "scalar/lanes.h"

#define BE_INLINE static inline __attribute__((always_inline))
#define BE_NOINLINE static __attribute__((noinline))

// In front of a loop with constant bounds: all of it is unrolled, so that constant indices of
// arrays become registers.
#if defined(__clang__)
#define BE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BE_UNROLL _Pragma("GCC unroll 16")
#endif

// 16 lanes as in scalar/lanes.h, four in each register.
typedef struct be_f32x16 {
  float32x4_t v0, v1, v2, v3;
} be_f32x16;

// How elements are stored; always a compile-time constant, so that its tests vanish.
typedef enum be_float_format { BE_FORMAT_F32, BE_FORMAT_F16, BE_FORMAT_BF16 } be_float_format;

BE_INLINE float32x4_t be_widen_f16(uint16x4_t x) {
#if BE_ARCH_ARM64
  return vcvt_f32_f16(vreinterpret_f16_u16(x));
#else // half.h in four lanes; the conversion is an optional extension of 32-bit NEON
  uint32x4_t wide = vmovl_u16(x);
  uint32x4_t sign = vshlq_n_u32(vandq_u32(wide, vdupq_n_u32(0x8000)), 16);
  uint32x4_t bits = vshlq_n_u32(vandq_u32(wide, vdupq_n_u32(0x7fff)), 13);
  uint32x4_t special = vcgeq_u32(bits, vdupq_n_u32(0x0f800000)); // infinity or NaN
  uint32x4_t quiet = vandq_u32(vcgtq_u32(bits, vdupq_n_u32(0x0f800000)), vdupq_n_u32(0x00400000));
  uint32x4_t normal = vaddq_u32(bits, vdupq_n_u32(112u << 23));
  normal = vaddq_u32(normal, vandq_u32(special, vdupq_n_u32(112u << 23)));
  normal = vorrq_u32(normal, quiet);
  float32x4_t small = vreinterpretq_f32_u32(vorrq_u32(bits, vdupq_n_u32(0x38800000)));
  small = vsubq_f32(small, vdupq_n_f32(0x1p-14f));
  uint32x4_t is_small = vcltq_u32(bits, vdupq_n_u32(0x00800000));
  normal = vbslq_u32(is_small, vreinterpretq_u32_f32(small), normal);
  return vreinterpretq_f32_u32(vorrq_u32(normal, sign));
#endif
}

// Elements i .. i + 3 of `base` as float32.
BE_INLINE float32x4_t be_load4(const void *base, size_t i, be_float_format format) {
  if (format == BE_FORMAT_F32)
    return vld1q_f32((const float *)base + i);
  uint16x4_t x = vld1_u16((const uint16_t *)base + i);
  if (format == BE_FORMAT_F16)
    return be_widen_f16(x);
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(x), 16));
}

BE_INLINE be_f32x16 be_load16(const void *base, size_t i, be_float_format format) {
  return (be_f32x16){be_load4(base, i, format), be_load4(base, i + 4, format),
                     be_load4(base, i + 8, format), be_load4(base, i + 12, format)};
}

// Elements i .. i + n - 1, n < 16, and zeros behind them. Not inlined, lest its copying disturb
// the loops that it follows.
__attribute__((unused)) BE_NOINLINE be_f32x16 be_load16_partial(const void *base, size_t i,
                                                                size_t n, be_float_format format) {
  size_t size = format == BE_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t);
  float padded[BE_LANES] = {0};
  memcpy(padded, (const uint8_t *)base + i * size, n * size);
  return be_load16(padded, 0, format);
}

BE_INLINE void be_store16(float *y, be_f32x16 x) {
  vst1q_f32(y, x.v0);
  vst1q_f32(y + 4, x.v1);
  vst1q_f32(y + 8, x.v2);
  vst1q_f32(y + 12, x.v3);
}

BE_INLINE be_f32x16 be_splat16(float x) {
  float32x4_t v = vdupq_n_f32(x);
  return (be_f32x16){v, v, v, v};
}

BE_INLINE be_f32x16 be_multiply16(be_f32x16 a, be_f32x16 b) {
  return (be_f32x16){vmulq_f32(a.v0, b.v0), vmulq_f32(a.v1, b.v1), vmulq_f32(a.v2, b.v2),
                     vmulq_f32(a.v3, b.v3)};
}

BE_INLINE be_f32x16 be_add16(be_f32x16 a, be_f32x16 b) {
  return (be_f32x16){vaddq_f32(a.v0, b.v0), vaddq_f32(a.v1, b.v1), vaddq_f32(a.v2, b.v2),
                     vaddq_f32(a.v3, b.v3)};
}

BE_INLINE be_f32x16 be_add_products(be_f32x16 sum, be_f32x16 a, be_f32x16 b) {
  return be_add16(sum, be_multiply16(a, b));
}

BE_INLINE float be_tree(be_f32x16 x) {
  float32x4_t t4 = vaddq_f32(vaddq_f32(x.v0, x.v2), vaddq_f32(x.v1, x.v3));
  float32x2_t t2 = vadd_f32(vget_low_f32(t4), vget_high_f32(t4));
  return vget_lane_f32(vpadd_f32(t2, t2), 0);
}

BE_INLINE float32x4_t be_divide4(float32x4_t a, float32x4_t b) {
#if BE_ARCH_ARM64
  return vdivq_f32(a, b);
#else
  float x[4], y[4];
  vst1q_f32(x, a);
  vst1q_f32(y, b);
  for (int i = 0; i < 4; i++)
    x[i] /= y[i];
  return vld1q_f32(x);
#endif
}

// be_exp of scalar/exp.h, operation by operation.
BE_INLINE float32x4_t be_exp4(float32x4_t x) {
  const float32x4_t magic = vdupq_n_f32(BE_ROUND_MAGIC);
  float32x4_t shifted = vaddq_f32(vmulq_f32(x, vdupq_n_f32(BE_EXP_LOG2E)), magic);
  float32x4_t n = vsubq_f32(shifted, magic);
  float32x4_t r = vsubq_f32(x, vmulq_f32(n, vdupq_n_f32(BE_EXP_LN2_HIGH)));
  r = vsubq_f32(r, vmulq_f32(n, vdupq_n_f32(BE_EXP_LN2_LOW)));
  float32x4_t q = vdupq_n_f32(BE_EXP_Q5);
  q = vaddq_f32(vmulq_f32(q, r), vdupq_n_f32(BE_EXP_Q4));
  q = vaddq_f32(vmulq_f32(q, r), vdupq_n_f32(BE_EXP_Q3));
  q = vaddq_f32(vmulq_f32(q, r), vdupq_n_f32(BE_EXP_Q2));
  q = vaddq_f32(vmulq_f32(q, r), vdupq_n_f32(BE_EXP_Q1));
  q = vaddq_f32(vmulq_f32(q, r), vdupq_n_f32(BE_EXP_Q0));
  float32x4_t p = vaddq_f32(vmulq_f32(q, vmulq_f32(r, r)), r);
  p = vaddq_f32(p, vdupq_n_f32(1.0f));
  int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
  float32x4_t y = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
  uint32x4_t finite = vcleq_f32(x, vdupq_n_f32(BE_EXP_MAX));
  y = vbslq_f32(finite, y, vmulq_f32(x, vdupq_n_f32(INFINITY)));
  uint32x4_t vanishes = vcltq_f32(x, vdupq_n_f32(BE_EXP_MIN));
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vanishes));
}

BE_INLINE be_f32x16 be_exp16(be_f32x16 x) {
  return (be_f32x16){be_exp4(x.v0), be_exp4(x.v1), be_exp4(x.v2), be_exp4(x.v3)};
}

// a > m ? a : m, a NaN in `a` ignored (vmaxq would return it).
BE_INLINE float32x4_t be_greater4(float32x4_t a, float32x4_t m) {
  return vbslq_f32(vcgtq_f32(a, m), a, m);
}

// Maxima of numbers are the same in any order.
BE_INLINE float be_max4(float32x4_t m) {
  float32x2_t t = vpmax_f32(vget_low_f32(m), vget_high_f32(m));
  return vget_lane_f32(vpmax_f32(t, t), 0);
}

// Four consecutive activations in every 32-bit lane.
BE_INLINE int8x16_t be_broadcast4(const int8_t *q) {
  return vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(const void *)q));
}

#endif
