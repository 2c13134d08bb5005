// SPDX-License-Identifier: MIT
// acc = W q over P16 (layout: scalar/ternary_gemv_i8.c).
//
// A block's 64 bytes are two registers of eight rows; field f of every byte must meet the four
// activations a_f = q[4f .. 4f + 3], broadcast to all rows. Fields are masked where they lie, so
// that fields 1 and 3 come out four times too large; they get an accumulator of their own:
//
//   u = 32 bytes, s = u >> 4        byte: f3 f2 f1 f0 -> .. .. f3 f2
//   L += maddubs(u & 03, a0) + maddubs(s & 03, a2)
//   H += maddubs(u & 0c, a1) + maddubs(s & 0c, a3)
//   acc = sum of (L + H / 4) - sum(q)        exact: every product in H is a multiple of 4
//
// L and H are int16. One maddubs gives at most 2 * 2 * 128 = 512 in magnitude for L and 2048 for
// H, two of each per block, and the least value of int16 is -32768:
//   H:  8 blocks * 2 * 2048 = 32768, so every 8 blocks H / 4 is added to L;
//   L: 16 blocks * 4 * 512  = 32768, H / 4 included; every 16 blocks L is widened to int32.
// The hostile code 3 wraps around and gives a wrong number, nothing else.
#include "x86/avx2.h"

enum {
  H_BLOCKS = 8,
  L_BLOCKS = 16,
  PREFETCH_BYTES = 8192 // a panel is one stream; worth 1.3x from DRAM
};

typedef struct eight_rows { // L and H of the text
  __m256i low, high;
} eight_rows;

BE_AVX2_INLINE eight_rows add_block(eight_rows sum, const uint8_t *w, __m256i a0, __m256i a1,
                                    __m256i a2, __m256i a3) {
  const __m256i mask03 = _mm256_set1_epi8(0x03), mask0c = _mm256_set1_epi8(0x0c);
  __m256i u = _mm256_loadu_si256((const __m256i *)w), s = _mm256_srli_epi16(u, 4);
  __m256i p0 = _mm256_maddubs_epi16(_mm256_and_si256(u, mask03), a0);
  __m256i p1 = _mm256_maddubs_epi16(_mm256_and_si256(u, mask0c), a1);
  __m256i p2 = _mm256_maddubs_epi16(_mm256_and_si256(s, mask03), a2);
  __m256i p3 = _mm256_maddubs_epi16(_mm256_and_si256(s, mask0c), a3);
  sum.low = _mm256_add_epi16(sum.low, _mm256_add_epi16(p0, p2));
  sum.high = _mm256_add_epi16(sum.high, _mm256_add_epi16(p1, p3));
  return sum;
}

BE_AVX2_INLINE eight_rows fold_high(eight_rows sum) {
  sum.low = _mm256_add_epi16(sum.low, _mm256_srai_epi16(sum.high, 2));
  sum.high = _mm256_setzero_si256();
  return sum;
}

BE_AVX2_INLINE __m256i widen(__m256i sum, __m256i words) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

BE_AVX2_INLINE void panel_times(int32_t *acc, const uint8_t *w, size_t k_blocks, const int8_t *q,
                                int32_t q_sum) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i sum0 = _mm256_set1_epi32((int32_t)(0u - (uint32_t)q_sum)),
          sum1 = sum0; // int32; rows 0-7, 8-15
  for (size_t b = 0; b < k_blocks;) {
    size_t low_end = k_blocks - b < L_BLOCKS ? k_blocks : b + L_BLOCKS;
    eight_rows rows0 = {zero, zero}, rows1 = {zero, zero};
    while (b < low_end) {
      size_t high_end = low_end - b < H_BLOCKS ? low_end : b + H_BLOCKS;
      for (; b < high_end; b++) {
        const uint8_t *block = w + b * BE_BLOCK_BYTES;
        const int8_t *a = q + b * BE_BLOCK_K;
        __m256i a0 = be_broadcast4(a), a1 = be_broadcast4(a + 4);
        __m256i a2 = be_broadcast4(a + 8), a3 = be_broadcast4(a + 12);
        _mm_prefetch((const char *)block + PREFETCH_BYTES, _MM_HINT_T0);
        rows0 = add_block(rows0, block, a0, a1, a2, a3);
        rows1 = add_block(rows1, block + 32, a0, a1, a2, a3);
      }
      rows0 = fold_high(rows0);
      rows1 = fold_high(rows1);
    }
    sum0 = widen(sum0, rows0.low);
    sum1 = widen(sum1, rows1.low);
  }
  _mm256_storeu_si256((__m256i *)acc, sum0);
  _mm256_storeu_si256((__m256i *)(acc + 8), sum1);
}

BE_AVX2 void ternary_gemv_i8_avx2(int32_t *acc, const uint8_t *w, size_t panel_stride,
                                  size_t n_panels, size_t k_blocks, const int8_t *q,
                                  int32_t q_sum) {
  for (size_t p = 0; p < n_panels; p++)
    panel_times(acc + p * BE_PANEL_ROWS, w + p * panel_stride, k_blocks, q, q_sum);
}
