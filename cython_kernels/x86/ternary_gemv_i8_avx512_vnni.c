// SPDX-License-Identifier: MIT
// acc = W q over P16 (layout: scalar/ternary_gemv_i8.c) with AVX-512 VNNI.
//
// A block is one register, 16 rows of four bytes. vpdpbusd adds the four products of a row's bytes
// straight to int32, so that fields stay where they lie and every one has its own accumulator:
//
//   sum_f += dpbusd(u & (3 << 2f), a_f)        4^f times too large
//   acc = sum_0 + sum_1 / 4 + sum_2 / 16 + sum_3 / 64 - sum(q)        exact divisions
//
// No overflow: |sum_3| <= 2 * 64 * 128 * k / 4 <= 2^31 for k <= 2^19; beyond, AVX2's kernel takes
// over. The masked byte is at most 3 * 64 = 192 even for the hostile code 3.
//
// Even and odd blocks have sums of their own: eight independent chains hide the latency. (Two
// panels at a time would too, but two streams from DRAM are slower than one.)
#include "x86/avx512.h"

enum {
  MAX_BLOCKS = 1 << 15, // k <= 2^19
  PREFETCH_BYTES = 8192 // a panel is one stream
};

typedef struct sums { // by field
  __m512i f0, f1, f2, f3;
} sums;

// BE_OPAQUE keeps gcc from copying every sum around each addition.
BE_AVX512_INLINE __m512i add_field(__m512i sum, __m512i u, uint32_t mask, const int8_t *q) {
  u = _mm512_and_si512(u, _mm512_set1_epi32((int32_t)mask));
  sum = _mm512_dpbusd_epi32(sum, u, be_broadcast4z(q));
  BE_OPAQUE(sum);
  return sum;
}

BE_AVX512_INLINE sums add_block(sums s, const uint8_t *w, const int8_t *q) {
  __m512i u = _mm512_loadu_si512(w);
  _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
  s.f0 = add_field(s.f0, u, 0x03030303, q);
  s.f1 = add_field(s.f1, u, 0x0c0c0c0c, q + 4);
  s.f2 = add_field(s.f2, u, 0x30303030, q + 8);
  s.f3 = add_field(s.f3, u, 0xc0c0c0c0, q + 12);
  return s;
}

BE_AVX512_INLINE void store_rows(int32_t *acc, sums s, int32_t q_sum) {
  __m512i low = _mm512_add_epi32(s.f0, _mm512_srai_epi32(s.f1, 2));
  __m512i high = _mm512_add_epi32(_mm512_srai_epi32(s.f2, 4), _mm512_srai_epi32(s.f3, 6));
  low = _mm512_sub_epi32(_mm512_add_epi32(low, high), _mm512_set1_epi32(q_sum));
  _mm512_storeu_si512(acc, low);
}

BE_AVX512_INLINE void panel_times(int32_t *acc, const uint8_t *w, size_t k_blocks, const int8_t *q,
                                  int32_t q_sum) {
  const __m512i zero = _mm512_setzero_si512();
  sums even = {zero, zero, zero, zero}, odd = even;
  size_t b = 0;
  for (; b + 2 <= k_blocks; b += 2, w += 2 * BE_BLOCK_BYTES, q += 2 * BE_BLOCK_K) {
    even = add_block(even, w, q);
    odd = add_block(odd, w + BE_BLOCK_BYTES, q + BE_BLOCK_K);
  }
  if (b < k_blocks)
    even = add_block(even, w, q);
  even.f0 = _mm512_add_epi32(even.f0, odd.f0);
  even.f1 = _mm512_add_epi32(even.f1, odd.f1);
  even.f2 = _mm512_add_epi32(even.f2, odd.f2);
  even.f3 = _mm512_add_epi32(even.f3, odd.f3);
  store_rows(acc, even, q_sum);
}

BE_AVX512 void ternary_gemv_i8_avx512_vnni(int32_t *acc, const uint8_t *w, size_t panel_stride,
                                           size_t n_panels, size_t k_blocks, const int8_t *q,
                                           int32_t q_sum) {
  if (k_blocks > MAX_BLOCKS) {
    ternary_gemv_i8_avx2(acc, w, panel_stride, n_panels, k_blocks, q, q_sum);
    return;
  }
  for (size_t p = 0; p < n_panels; p++)
    panel_times(acc + p * BE_PANEL_ROWS, w + p * panel_stride, k_blocks, q, q_sum);
}
