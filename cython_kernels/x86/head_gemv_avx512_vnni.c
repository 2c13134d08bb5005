// SPDX-License-Identifier: MIT
// Rows of a quantised head times int16 activations, see scalar/head_gemv.c; vpdpwssd adds the
// products of a pair of int16 straight to int32, without saturation.
//
// int8: 32 bytes are eight rows of four columns; widened to int16 and multiplied with the four
// activations in every 64 bits, each row is two int32 lanes, added when the panel is done.
//
// int4: a line is 16 rows of eight columns. Nibbles are masked where they lie in their 16-bit
// words, so that some come out 16 or 256 times too large; they have sums of their own, combined as
// in head_gemv_avx2.c: 8 * 15 * 256 * 32768 < 2^30, whatever q holds.
#include "x86/avx512.h"

enum { PREFETCH_BYTES = 8192 }; // a panel is one stream

BE_AVX512_INLINE void prefetch(const uint8_t *w) {
  _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
}

// BE_OPAQUE keeps gcc from copying every sum around each addition.
BE_AVX512_INLINE __m512i multiply_add(__m512i sum, __m512i w, __m512i q) {
  sum = _mm512_dpwssd_epi32(sum, w, q);
  BE_OPAQUE(sum);
  return sum;
}

typedef struct rows { // two lanes a row
  __m512i low, high;  // rows 0-7, 8-15
} rows;

BE_AVX512_INLINE rows add_block(rows sum, const uint8_t *w, const int16_t *q) {
  int64_t four;
  memcpy(&four, q, sizeof four);
  __m512i a = _mm512_set1_epi64(four);
  __m512i low = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
  __m512i high = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(w + 32)));
  prefetch(w);
  return (rows){multiply_add(sum.low, low, a), multiply_add(sum.high, high, a)};
}

BE_AVX512_INLINE __m512i add_lanes(rows x) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_permutex2var_epi32(x.low, even, x.high),
                          _mm512_permutex2var_epi32(x.low, odd, x.high));
}

BE_AVX512 void head_gemv_i8_avx512_vnni(float *y, const uint8_t *w, size_t n_panels, size_t k,
                                        const int16_t *q, float s) {
  const __m512 divisor = _mm512_set1_ps(s);
  const rows zero = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS) {
    __m512 scale = _mm512_loadu_ps(w);
    rows a = zero, b = zero; // even and odd blocks: four chains hide the latency
    size_t i = 0;
    w += BE_I8_SCALES;
    for (; i + BE_I8_BLOCK_K < k; i += 2 * BE_I8_BLOCK_K, w += 2 * BE_HEAD_LINE) {
      a = add_block(a, w, q + i);
      b = add_block(b, w + BE_HEAD_LINE, q + i + BE_I8_BLOCK_K);
    }
    if (i < k) {
      a = add_block(a, w, q + i);
      w += BE_HEAD_LINE;
    }
    a.low = _mm512_add_epi32(a.low, b.low);
    a.high = _mm512_add_epi32(a.high, b.high);
    __m512 value = _mm512_div_ps(_mm512_cvtepi32_ps(add_lanes(a)), divisor);
    _mm512_storeu_ps(y, _mm512_mul_ps(value, scale));
  }
}

BE_AVX512_INLINE __m512i broadcast_pair(const int16_t *q) {
  int32_t pair;
  memcpy(&pair, q, sizeof pair);
  return _mm512_set1_epi32(pair);
}

// sum over 8 columns of q * nibble, for 16 rows: by1, by16 and by256 of head_gemv_avx2.c.
typedef struct sums {
  __m512i by1, by16, by256, top;
} sums;

BE_AVX512_INLINE sums add_line(sums s, const uint8_t *w, const int16_t *q) {
  __m512i u = _mm512_loadu_si512(w);
  __m512i n0 = _mm512_and_si512(u, _mm512_set1_epi16(0x000f));
  __m512i n1 = _mm512_and_si512(u, _mm512_set1_epi16(0x00f0));
  __m512i n2 = _mm512_and_si512(u, _mm512_set1_epi16(0x0f00));
  prefetch(w);
  s.by1 = multiply_add(s.by1, n0, broadcast_pair(q));
  s.by16 = multiply_add(s.by16, n1, broadcast_pair(q + 2));
  s.by256 = multiply_add(s.by256, n2, broadcast_pair(q + 4));
  s.top = multiply_add(s.top, _mm512_srli_epi16(u, 12), broadcast_pair(q + 6));
  return s;
}

BE_AVX512_INLINE __m512 add_group(__m512 y, const uint8_t *scales, const uint8_t *lines,
                                  const int16_t *q, int32_t q_sum) {
  const __m512i zero = _mm512_setzero_si512();
  sums s = {zero, zero, zero, zero};
  for (int l = 0; l < 4; l++)
    s = add_line(s, lines + l * BE_HEAD_LINE, q + l * BE_I4_LINE_K);
  __m512i part = _mm512_add_epi32(_mm512_add_epi32(s.by1, s.top), _mm512_srai_epi32(s.by16, 4));
  part = _mm512_add_epi32(part, _mm512_srai_epi32(s.by256, 8));
  part = _mm512_sub_epi32(part, _mm512_slli_epi32(_mm512_set1_epi32(q_sum), 3));
  __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
  return be_add_product16(y, _mm512_cvtepi32_ps(part), scale);
}

BE_AVX512 void head_gemv_i4_avx512_vnni(float *y, const uint8_t *w, size_t n_panels, size_t k,
                                        const int16_t *q, const int32_t *q_sum, float s) {
  const size_t n_blocks = (k + BE_I4_BLOCK_K - 1) / BE_I4_BLOCK_K;
  for (size_t p = 0; p < n_panels; p++, y += BE_HEAD_ROWS) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++, w += BE_I4_BLOCK_BYTES) {
      const int16_t *a = q + b * BE_I4_BLOCK_K;
      sum = add_group(sum, w, w + BE_HEAD_LINE, a, q_sum[2 * b]);
      prefetch(w);
      sum = add_group(sum, w + 32, w + 5 * BE_HEAD_LINE, a + BE_I4_GROUP_K, q_sum[2 * b + 1]);
    }
    _mm512_storeu_ps(y, _mm512_div_ps(sum, _mm512_set1_ps(s)));
  }
}
