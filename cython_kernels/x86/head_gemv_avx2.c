// SPDX-License-Identifier: MIT
// Rows of a quantised head times int16 activations, see scalar/head_gemv.c.
//
// int8: 16 bytes are four rows of four columns; widened to int16 and multiplied with the four
// activations in every 64 bits, each row is two int32 lanes, added when the panel is done.
//
// int4: 32 bytes are eight rows of eight columns. Nibbles are masked where they lie in their
// 16-bit words, so that some come out 16 or 256 times too large; they have sums of their own:
//
//   A0 += madd(u & 000f, q01) + madd(u >> 12, q67)
//   A1 += madd(u & 00f0, q23)      A2 += madd(u & 0f00, q45)
//   part = A0 + A1 / 16 + A2 / 256 - 8 * sum(q)         exact: multiples of 16 and 256
//
// Within a group A2 takes 4 lines of two products: 8 * 15 * 256 * 32768 < 2^30, whatever q holds.
#include "x86/avx2.h"

enum { PREFETCH_BYTES = 8192 }; // a panel is one stream

BE_AVX2_INLINE void prefetch(const uint8_t *w) {
  _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
}

BE_AVX2_INLINE __m256i add_four_rows(__m256i sum, const uint8_t *w, __m256i q) {
  __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(wide, q));
}

// Eight rows from two times four rows of two lanes; y = (acc / s) * scale.
BE_AVX2_INLINE void store_eight_rows(float *y, __m256i rows03, __m256i rows47, __m256 s,
                                     const uint8_t *scales) {
  __m256i acc = _mm256_permute4x64_epi64(_mm256_hadd_epi32(rows03, rows47), 0xd8);
  __m256 value = _mm256_div_ps(_mm256_cvtepi32_ps(acc), s);
  _mm256_storeu_ps(y, _mm256_mul_ps(value, _mm256_loadu_ps((const float *)(const void *)scales)));
}

BE_AVX2 void head_gemv_i8_avx2(float *y, const uint8_t *w, size_t n_panels, size_t k,
                               const int16_t *q, float s) {
  const __m256 divisor = _mm256_set1_ps(s);
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS) {
    const uint8_t *scales = w;
    __m256i rows03 = _mm256_setzero_si256(), rows47 = rows03, rows8b = rows03, rowscf = rows03;
    w += BE_I8_SCALES;
    for (size_t i = 0; i < k; i += BE_I8_BLOCK_K, w += BE_HEAD_LINE) {
      int64_t four;
      memcpy(&four, q + i, sizeof four);
      __m256i a = _mm256_set1_epi64x(four);
      prefetch(w);
      rows03 = add_four_rows(rows03, w, a);
      rows47 = add_four_rows(rows47, w + 16, a);
      rows8b = add_four_rows(rows8b, w + 32, a);
      rowscf = add_four_rows(rowscf, w + 48, a);
    }
    store_eight_rows(y, rows03, rows47, divisor, scales);
    store_eight_rows(y + 8, rows8b, rowscf, divisor, scales + 32);
  }
}

// BE_OPAQUE keeps gcc from adding products to each other first, after which its registers run out.
BE_AVX2_INLINE __m256i multiply_add(__m256i sum, __m256i nibbles, const int16_t *pair) {
  int32_t q;
  memcpy(&q, pair, sizeof q);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(nibbles, _mm256_set1_epi32(q)));
  BE_OPAQUE(sum);
  return sum;
}

// y += part * scale of one group, for eight rows of its four lines.
BE_AVX2_INLINE __m256 add_group(__m256 y, const uint8_t *scales, const uint8_t *lines,
                                const int16_t *q, int32_t q_sum) {
  __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0;
  for (int l = 0; l < 4; l++, lines += BE_HEAD_LINE, q += BE_I4_LINE_K) {
    __m256i u = _mm256_loadu_si256((const __m256i *)lines);
    a0 = multiply_add(a0, _mm256_and_si256(u, _mm256_set1_epi16(0x000f)), q);
    a1 = multiply_add(a1, _mm256_and_si256(u, _mm256_set1_epi16(0x00f0)), q + 2);
    a2 = multiply_add(a2, _mm256_and_si256(u, _mm256_set1_epi16(0x0f00)), q + 4);
    a0 = multiply_add(a0, _mm256_srli_epi16(u, 12), q + 6);
  }
  __m256i part = _mm256_add_epi32(a0, _mm256_srai_epi32(a1, 4));
  part = _mm256_add_epi32(part, _mm256_srai_epi32(a2, 8));
  part = _mm256_sub_epi32(part, _mm256_slli_epi32(_mm256_set1_epi32(q_sum), 3));
  __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scales));
  return _mm256_add_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(part), scale));
}

BE_AVX2 void head_gemv_i4_avx2(float *y, const uint8_t *w, size_t n_panels, size_t k,
                               const int16_t *q, const int32_t *q_sum, float s) {
  const size_t n_groups = (k + BE_I4_BLOCK_K - 1) / BE_I4_BLOCK_K * 2;
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS) {
    __m256 rows07 = _mm256_setzero_ps(), rows8f = rows07;
    for (size_t g = 0; g < n_groups; g++) {
      const uint8_t *block = w + g / 2 * BE_I4_BLOCK_BYTES, *scales = block + g % 2 * 32;
      const uint8_t *lines = block + (1 + g % 2 * 4) * BE_HEAD_LINE;
      const int16_t *a = q + g * BE_I4_GROUP_K;
      for (int l = 0; l < 4; l++)
        prefetch(lines + l * BE_HEAD_LINE);
      rows07 = add_group(rows07, scales, lines, a, q_sum[g]);
      // One half after the other: the activations of both at once do not fit the registers.
      __asm__ volatile("" ::: "memory");
      rows8f = add_group(rows8f, scales + 16, lines + 32, a, q_sum[g]);
    }
    _mm256_storeu_ps(y, _mm256_div_ps(rows07, _mm256_set1_ps(s)));
    _mm256_storeu_ps(y + 8, _mm256_div_ps(rows8f, _mm256_set1_ps(s)));
    w += n_groups / 2 * BE_I4_BLOCK_BYTES;
  }
}
