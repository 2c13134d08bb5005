// SPDX-License-Identifier: MIT
// acc = W q over P16 (layout: scalar/ternary_gemv_i8.c) with AVX-VNNI.
//
// vpdpbusd adds the four products of a row's bytes straight to int32. Every field has its own
// accumulator, eight independent chains for the 16 rows; fields 1 and 3 stay where they lie, four
// times too large:
//
//   u = 32 bytes, s = u >> 4        byte: f3 f2 f1 f0 -> .. .. f3 f2
//   sum_0 += dpbusd(u & 03, a0);  sum_1 += dpbusd(u & 0c, a1)
//   sum_2 += dpbusd(s & 03, a2);  sum_3 += dpbusd(s & 0c, a3)
//   acc = sum_0 + sum_2 + (sum_1 + sum_3) / 4 - sum(q)        the division is exact
//
// (Masks for all four places would save the shift, but four masks and eight sums are too many for
// 16 registers.) No overflow: |sum_1 + sum_3| <= 2 * 4 * 128 * k / 2 < 2^31 for k < 2^22.
#include "x86/avx_vnni.h"

enum { PREFETCH_BYTES = 8192 }; // a panel is one stream

// BE_OPAQUE keeps gcc from copying every sum around each addition.
BE_AVX_VNNI_INLINE __m256i add_field(__m256i sum, __m256i u, int mask, __m256i a) {
  sum = _mm256_dpbusd_avx_epi32(sum, _mm256_and_si256(u, _mm256_set1_epi8((char)mask)), a);
  BE_OPAQUE(sum);
  return sum;
}

BE_AVX_VNNI_INLINE void store_rows(int32_t *acc, __m256i f0, __m256i f1, __m256i f2, __m256i f3,
                                   int32_t q_sum) {
  __m256i high = _mm256_srai_epi32(_mm256_add_epi32(f1, f3), 2);
  __m256i sum = _mm256_add_epi32(_mm256_add_epi32(f0, f2), high);
  _mm256_storeu_si256((__m256i *)acc, _mm256_sub_epi32(sum, _mm256_set1_epi32(q_sum)));
}

BE_AVX_VNNI_INLINE void panel_times(int32_t *acc, const uint8_t *w, size_t k_blocks,
                                    const int8_t *q, int32_t q_sum) {
  __m256i u0 = _mm256_setzero_si256(), u1 = u0, u2 = u0, u3 = u0; // rows 0-7, by field
  __m256i v0 = u0, v1 = u0, v2 = u0, v3 = u0;                     // rows 8-15
  for (size_t b = 0; b < k_blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    __m256i u = _mm256_loadu_si256((const __m256i *)w);
    __m256i v = _mm256_loadu_si256((const __m256i *)(w + 32));
    __m256i a = be_broadcast4(q);
    _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
    u0 = add_field(u0, u, 0x03, a);
    v0 = add_field(v0, v, 0x03, a);
    a = be_broadcast4(q + 4);
    u1 = add_field(u1, u, 0x0c, a);
    v1 = add_field(v1, v, 0x0c, a);
    u = _mm256_srli_epi16(u, 4);
    v = _mm256_srli_epi16(v, 4);
    a = be_broadcast4(q + 8);
    u2 = add_field(u2, u, 0x03, a);
    v2 = add_field(v2, v, 0x03, a);
    a = be_broadcast4(q + 12);
    u3 = add_field(u3, u, 0x0c, a);
    v3 = add_field(v3, v, 0x0c, a);
  }
  store_rows(acc, u0, u1, u2, u3, q_sum);
  store_rows(acc + 8, v0, v1, v2, v3, q_sum);
}

BE_AVX_VNNI void ternary_gemv_i8_avx_vnni(int32_t *acc, const uint8_t *w, size_t panel_stride,
                                          size_t n_panels, size_t k_blocks, const int8_t *q,
                                          int32_t q_sum) {
  for (size_t p = 0; p < n_panels; p++)
    panel_times(acc + p * BE_PANEL_ROWS, w + p * panel_stride, k_blocks, q, q_sum);
}
