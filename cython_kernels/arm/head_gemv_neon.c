// SPDX-License-Identifier: MIT
// Rows of a quantised head times int16 activations (scalar/head_gemv.c) with ARMv8.0 or 32-bit
// NEON: widening multiply-adds of int16 into int32, which wrap as the scalar sums do.
//
// int8: 16 bytes are four rows of four columns; a row's four products are four int32 lanes, added
// when the panel is done. int4: 16 bytes are four rows of two words of four nibbles; a row is two
// int32 lanes, added when the group is done.
#include "arm/neon.h"

enum {
  // A panel in one pass needs 16 (int8) or 8 (int4) registers of sums; with 16 registers in all,
  // several passes over the panel's lines.
  I8_PASS_ROWS = BE_ARCH_ARM64 ? 16 : 8,
  I4_PASS_ROWS = BE_ARCH_ARM64 ? 16 : 8,
  PREFETCH_BYTES = 2048 // a panel is one stream
};

typedef struct four_rows { // int8: one register a row
  int32x4_t r0, r1, r2, r3;
} four_rows;

BE_INLINE four_rows add_four_rows(four_rows sum, const int8_t *w, int16x4_t q) {
  int8x16_t bytes = vld1q_s8(w);
  int16x8_t rows01 = vmovl_s8(vget_low_s8(bytes)), rows23 = vmovl_s8(vget_high_s8(bytes));
  sum.r0 = vmlal_s16(sum.r0, vget_low_s16(rows01), q);
  sum.r1 = vmlal_s16(sum.r1, vget_high_s16(rows01), q);
  sum.r2 = vmlal_s16(sum.r2, vget_low_s16(rows23), q);
  sum.r3 = vmlal_s16(sum.r3, vget_high_s16(rows23), q);
  return sum;
}

BE_INLINE int32x2_t add_lanes2(int32x4_t x) { return vpadd_s32(vget_low_s32(x), vget_high_s32(x)); }

BE_INLINE void store_four_rows(float *y, four_rows x, float32x4_t s, const uint8_t *scales) {
  int32x2_t rows01 = vpadd_s32(add_lanes2(x.r0), add_lanes2(x.r1));
  int32x2_t rows23 = vpadd_s32(add_lanes2(x.r2), add_lanes2(x.r3));
  float32x4_t value = be_divide4(vcvtq_f32_s32(vcombine_s32(rows01, rows23)), s);
  vst1q_f32(y, vmulq_f32(value, vreinterpretq_f32_u8(vld1q_u8(scales))));
}

void head_gemv_i8_neon(float *y, const uint8_t *w, size_t n_panels, size_t k, const int16_t *q,
                       float s) {
  const size_t panel_bytes = be_head_panel_bytes(8, k);
  const float32x4_t divisor = vdupq_n_f32(s);
  const int32x4_t zero = vdupq_n_s32(0);
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS, w += panel_bytes)
    for (size_t row = 0; row < BE_HEAD_ROWS; row += I8_PASS_ROWS) {
      const int8_t *line = (const int8_t *)(w + BE_I8_SCALES + row * BE_I8_BLOCK_K);
      four_rows s0 = {zero, zero, zero, zero}, s1 = s0, s2 = s0, s3 = s0;
      for (size_t i = 0; i < k; i += BE_I8_BLOCK_K, line += BE_HEAD_LINE) {
        int16x4_t a = vld1_s16(q + i);
        __builtin_prefetch(line + PREFETCH_BYTES);
        s0 = add_four_rows(s0, line, a);
        s1 = add_four_rows(s1, line + 16, a);
        if (I8_PASS_ROWS > 8) {
          s2 = add_four_rows(s2, line + 32, a);
          s3 = add_four_rows(s3, line + 48, a);
        }
      }
      const uint8_t *scales = w + row * sizeof(float);
      store_four_rows(y + row, s0, divisor, scales);
      store_four_rows(y + row + 4, s1, divisor, scales + 16);
      if (I8_PASS_ROWS > 8) {
        store_four_rows(y + row + 8, s2, divisor, scales + 32);
        store_four_rows(y + row + 12, s3, divisor, scales + 48);
      }
    }
}

typedef struct four_pairs { // int4: two lanes a row
  int32x4_t r01, r23;
} four_pairs;

// Two activations in both halves.
BE_INLINE int16x4_t broadcast_pair(const int16_t *q) {
  return vreinterpret_s16_s32(vld1_dup_s32((const int32_t *)(const void *)q));
}

BE_INLINE four_pairs multiply_add(four_pairs sum, uint16x8_t nibbles, int16x4_t q) {
  int16x8_t x = vreinterpretq_s16_u16(nibbles);
  sum.r01 = vmlal_s16(sum.r01, vget_low_s16(x), q);
  sum.r23 = vmlal_s16(sum.r23, vget_high_s16(x), q);
  return sum;
}

BE_INLINE four_pairs add_nibbles(four_pairs sum, const uint8_t *w, int16x4_t q01, int16x4_t q23,
                                 int16x4_t q45, int16x4_t q67) {
  const uint16x8_t mask = vdupq_n_u16(15);
  uint16x8_t u = vreinterpretq_u16_u8(vld1q_u8(w));
  sum = multiply_add(sum, vandq_u16(u, mask), q01);
  sum = multiply_add(sum, vandq_u16(vshrq_n_u16(u, 4), mask), q23);
  sum = multiply_add(sum, vandq_u16(vshrq_n_u16(u, 8), mask), q45);
  return multiply_add(sum, vshrq_n_u16(u, 12), q67);
}

// y[0..4) += (nibbles - 8 * q_sum) * scale.
BE_INLINE void add_group(float *y, four_pairs x, int32x4_t q_sum8, const uint8_t *scales) {
  int32x4_t part = vsubq_s32(vcombine_s32(add_lanes2(x.r01), add_lanes2(x.r23)), q_sum8);
  float32x4_t scale = be_load4(scales, 0, BE_FORMAT_F16);
  vst1q_f32(y, vaddq_f32(vld1q_f32(y), vmulq_f32(vcvtq_f32_s32(part), scale)));
}

// One group of I4_PASS_ROWS rows.
BE_INLINE void group_times(float *y, const uint8_t *scales, const uint8_t *line, const int16_t *q,
                           int32_t q_sum) {
  const int32x4_t zero = vdupq_n_s32(0);
  four_pairs s0 = {zero, zero}, s1 = s0, s2 = s0, s3 = s0;
  for (int l = 0; l < 4; l++, line += BE_HEAD_LINE, q += BE_I4_LINE_K) {
    int16x4_t q01 = broadcast_pair(q), q23 = broadcast_pair(q + 2);
    int16x4_t q45 = broadcast_pair(q + 4), q67 = broadcast_pair(q + 6);
    __builtin_prefetch(line + PREFETCH_BYTES);
    s0 = add_nibbles(s0, line, q01, q23, q45, q67);
    s1 = add_nibbles(s1, line + 16, q01, q23, q45, q67);
    if (I4_PASS_ROWS > 8) {
      s2 = add_nibbles(s2, line + 32, q01, q23, q45, q67);
      s3 = add_nibbles(s3, line + 48, q01, q23, q45, q67);
    }
  }
  const int32x4_t q_sum8 = vshlq_n_s32(vdupq_n_s32(q_sum), 3);
  add_group(y, s0, q_sum8, scales);
  add_group(y + 4, s1, q_sum8, scales + 8);
  if (I4_PASS_ROWS > 8) {
    add_group(y + 8, s2, q_sum8, scales + 16);
    add_group(y + 12, s3, q_sum8, scales + 24);
  }
}

void head_gemv_i4_neon(float *y, const uint8_t *w, size_t n_panels, size_t k, const int16_t *q,
                       const int32_t *q_sum, float s) {
  const size_t n_groups = (k + BE_I4_BLOCK_K - 1) / BE_I4_BLOCK_K * 2;
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS) {
    float sum[BE_HEAD_ROWS] = {0};
    for (size_t g = 0; g < n_groups; g++) {
      const uint8_t *block = w + g / 2 * BE_I4_BLOCK_BYTES, *scales = block + g % 2 * 32;
      const uint8_t *lines = block + (1 + g % 2 * 4) * BE_HEAD_LINE;
      for (size_t row = 0; row < BE_HEAD_ROWS; row += I4_PASS_ROWS)
        group_times(sum + row, scales + 2 * row, lines + 4 * row, q + g * BE_I4_GROUP_K, q_sum[g]);
    }
    for (size_t row = 0; row < BE_HEAD_ROWS; row += 4)
      vst1q_f32(y + row, be_divide4(vld1q_f32(sum + row), vdupq_n_f32(s)));
    w += n_groups / 2 * BE_I4_BLOCK_BYTES;
  }
}
