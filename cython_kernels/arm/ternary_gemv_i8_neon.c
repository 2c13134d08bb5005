// SPDX-License-Identifier: MIT
// acc = W q over P16 (layout: scalar/ternary_gemv_i8.c) with ARMv8.0 or 32-bit NEON.
//
// A block's 64 bytes are four registers of four rows; field f of every byte must meet the four
// activations a_f = q[4f .. 4f + 3], broadcast to all rows. Fields are masked where they lie, so
// that fields 1 and 3 come out four times too large; they get accumulators of their own:
//
//   u = 16 bytes, s = u >> 4        byte: f3 f2 f1 f0 -> .. .. f3 f2
//   L += (u & 03) * a0 + (s & 03) * a2
//   H += (u & 0c) * a1 + (s & 0c) * a3
//   acc = sum of (L + H / 4) - sum(q)        exact: every product in H is a multiple of 4
//
// L and H are int16, one lane for each byte. A product is at most 2 * 128 = 256 in magnitude in L
// and 1024 in H, two of each per block, and the least value of int16 is -32768:
//   H: 16 blocks * 2 * 1024 = 32768, so every 16 blocks H / 4 is added to L;
//   L: 32 blocks * 4 * 256  = 32768, H / 4 included; every 32 blocks L is added to acc.
// The hostile code 3 wraps around and gives a wrong number, nothing else.
#include "arm/ternary_neon.h"

enum {
  H_BLOCKS = 16,
  L_BLOCKS = 32,
  // All 16 rows in one pass need 27 registers; with 16 of them, two passes of eight rows.
  PASS_ROWS = BE_ARCH_ARM64 ? 16 : 8,
  PREFETCH_BYTES = 2048 // a panel is one stream
};

typedef struct sums {
  be_four_rows low, high; // L and H of the text
} sums;

// The empty assembly keeps gcc from mixing the instructions of several registers of weights, after
// which its registers run out.
BE_INLINE sums add_rows(sums s, uint8x16_t u, int8x16_t a0, int8x16_t a1, int8x16_t a2,
                        int8x16_t a3) {
  const uint8x16_t mask03 = vdupq_n_u8(0x03), mask0c = vdupq_n_u8(0x0c);
  __asm__ volatile("" : "+w"(u));
  uint8x16_t v = vshrq_n_u8(u, 4);
  s.low = be_multiply_add(s.low, vandq_u8(u, mask03), a0);
  s.high = be_multiply_add(s.high, vandq_u8(u, mask0c), a1);
  s.low = be_multiply_add(s.low, vandq_u8(v, mask03), a2);
  s.high = be_multiply_add(s.high, vandq_u8(v, mask0c), a3);
  __asm__ volatile("" : "+w"(s.low.r01), "+w"(s.low.r23), "+w"(s.high.r01), "+w"(s.high.r23));
  return s;
}

BE_INLINE sums fold_high(sums s) {
  s.low.r01 = vsraq_n_s16(s.low.r01, s.high.r01, 2);
  s.low.r23 = vsraq_n_s16(s.low.r23, s.high.r23, 2);
  s.high = be_zero_rows();
  return s;
}

// acc[0..PASS_ROWS) += at most L_BLOCKS blocks.
BE_INLINE void chunk_times(int32_t *acc, const uint8_t *w, size_t blocks, const int8_t *q) {
  const sums zero = {be_zero_rows(), be_zero_rows()};
  sums s0 = zero, s1 = zero, s2 = zero, s3 = zero;
  for (size_t b = 0; b < blocks;) {
    size_t end = blocks - b < H_BLOCKS ? blocks : b + H_BLOCKS;
    for (; b < end; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
      int8x16_t a0 = be_broadcast4(q), a1 = be_broadcast4(q + 4);
      int8x16_t a2 = be_broadcast4(q + 8), a3 = be_broadcast4(q + 12);
      __builtin_prefetch(w + PREFETCH_BYTES);
      const size_t second = PASS_ROWS > 8 ? 32 : 0;
      uint8x16_t u0 = vld1q_u8(w), u1 = vld1q_u8(w + 16);
      uint8x16_t u2 = vld1q_u8(w + second), u3 = vld1q_u8(w + second + 16);
      // Loads stay in front: an in-order core would wait for each.
      __asm__ volatile("" : "+w"(u0), "+w"(u1), "+w"(u2), "+w"(u3));
      s0 = add_rows(s0, u0, a0, a1, a2, a3);
      s1 = add_rows(s1, u1, a0, a1, a2, a3);
      if (PASS_ROWS > 8) {
        s2 = add_rows(s2, u2, a0, a1, a2, a3);
        s3 = add_rows(s3, u3, a0, a1, a2, a3);
      }
    }
    s0 = fold_high(s0);
    s1 = fold_high(s1);
    s2 = fold_high(s2);
    s3 = fold_high(s3);
  }
  be_add_rows(acc, s0.low);
  be_add_rows(acc + 4, s1.low);
  if (PASS_ROWS > 8) {
    be_add_rows(acc + 8, s2.low);
    be_add_rows(acc + 12, s3.low);
  }
}

void ternary_gemv_i8_neon(int32_t *acc, const uint8_t *w, size_t panel_stride, size_t n_panels,
                          size_t k_blocks, const int8_t *q, int32_t q_sum) {
  for (size_t p = 0; p < n_panels; p++, w += panel_stride, acc += BE_PANEL_ROWS)
    for (size_t row = 0; row < BE_PANEL_ROWS; row += PASS_ROWS) {
      for (size_t r = 0; r < PASS_ROWS; r += 4)
        vst1q_s32(acc + row + r, vdupq_n_s32((int32_t)(0u - (uint32_t)q_sum)));
      for (size_t b = 0; b < k_blocks; b += L_BLOCKS)
        chunk_times(acc + row, w + b * BE_BLOCK_BYTES + 4 * row,
                    k_blocks - b < L_BLOCKS ? k_blocks - b : L_BLOCKS, q + b * BE_BLOCK_K);
    }
}
