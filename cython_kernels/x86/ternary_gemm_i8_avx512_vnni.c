// SPDX-License-Identifier: MIT
// acc[t] = W q[t] over P16 (layout: scalar/ternary_gemv_i8.c) with AVX-512 VNNI.
//
// Two panels (32 rows) meet up to eight rows of q at a time, codes unpacked in registers, 16 int32
// accumulators. The unpacking (7 operations a block and panel) runs beside the dot products, which
// two of the four vector units can do. No overflow: |sum| <= 2 * 128 * k < 2^31 for k < 2^23.
#include "x86/avx512.h"

enum {
  MAX_TOKENS = 8,       // rows of q at a time
  PREFETCH_BYTES = 2048 // a panel is one stream
};

BE_AVX512_INLINE __m512i field(__m512i u, int f) {
  return _mm512_and_si512(_mm512_srli_epi16(u, 2 * f), _mm512_set1_epi8(3));
}

// BE_OPAQUE keeps gcc from copying every sum around each addition.
BE_AVX512_INLINE __m512i multiply_add(__m512i sum, __m512i codes, __m512i a) {
  sum = _mm512_dpbusd_epi32(sum, codes, a);
  BE_OPAQUE(sum);
  return sum;
}

// One or two panels times 2 .. MAX_TOKENS rows of q; both counts are constants. Fewer than four
// rows would be too few chains to hide the latency: odd fields then have sums of their own.
BE_AVX512_INLINE void tile_times(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                 size_t panel_stride, const int panels, size_t k_blocks,
                                 const int8_t *q, size_t q_stride, const int32_t *q_sum,
                                 const int tokens) {
  const int odd = tokens < 4 ? 4 : 0;        // where the sums of odd fields begin
  __m512i low[MAX_TOKENS], high[MAX_TOKENS]; // panel 0, panel 1; constant indices: registers
  BE_UNROLL for (int t = 0; t < MAX_TOKENS; t++) { low[t] = high[t] = _mm512_setzero_si512(); }
  for (size_t b = 0; b < k_blocks; b++, w += BE_BLOCK_BYTES, q += BE_BLOCK_K) {
    __m512i u = _mm512_loadu_si512(w);
    __m512i v = panels > 1 ? _mm512_loadu_si512(w + panel_stride) : u;
    _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
    if (panels > 1)
      _mm_prefetch((const char *)w + panel_stride + PREFETCH_BYTES, _MM_HINT_T0);
    BE_UNROLL for (int f = 0; f < 4; f++) {
      const int first = f % 2 * odd;
      __m512i u_f = field(u, f), v_f = field(v, f);
      BE_UNROLL for (int t = 0; t < tokens; t++) {
        __m512i a = be_broadcast4z(q + t * q_stride + 4 * f);
        low[first + t] = multiply_add(low[first + t], u_f, a);
        if (panels > 1)
          high[first + t] = multiply_add(high[first + t], v_f, a);
      }
    }
  }
  BE_UNROLL for (int t = 0; t < tokens; t++) {
    const __m512i bias = _mm512_set1_epi32(q_sum[t]);
    if (odd) {
      low[t] = _mm512_add_epi32(low[t], low[odd + t]);
      high[t] = _mm512_add_epi32(high[t], high[odd + t]);
    }
    _mm512_storeu_si512(acc + t * acc_stride, _mm512_sub_epi32(low[t], bias));
    if (panels > 1)
      _mm512_storeu_si512(acc + t * acc_stride + BE_PANEL_ROWS, _mm512_sub_epi32(high[t], bias));
  }
}

// One function per tile: alone, each gets all registers.
#define DEFINE_TILE(panels, tokens)                                                                \
  BE_AVX512_NOINLINE void tile_##panels##x##tokens(                                                \
      int32_t *acc, size_t acc_stride, const uint8_t *w, size_t panel_stride, size_t k_blocks,     \
      const int8_t *q, size_t q_stride, const int32_t *q_sum) {                                    \
    tile_times(acc, acc_stride, w, panel_stride, panels, k_blocks, q, q_stride, q_sum, tokens);    \
  }
DEFINE_TILE(1, 2)
DEFINE_TILE(1, 3)
DEFINE_TILE(1, 4)
DEFINE_TILE(1, 8)
DEFINE_TILE(2, 2)
DEFINE_TILE(2, 3)
DEFINE_TILE(2, 4)
DEFINE_TILE(2, 8)

typedef void tile(int32_t *acc, size_t acc_stride, const uint8_t *w, size_t panel_stride,
                  size_t k_blocks, const int8_t *q, size_t q_stride, const int32_t *q_sum);

BE_AVX512 void ternary_gemm_i8_avx512_vnni(int32_t *acc, size_t acc_stride, const uint8_t *w,
                                           size_t panel_stride, size_t n_panels, size_t k_blocks,
                                           const int8_t *q, size_t q_stride, const int32_t *q_sum,
                                           size_t m) {
  static tile *const one_panel[] = {0, 0, tile_1x2, tile_1x3, tile_1x4, 0, 0, 0, tile_1x8};
  static tile *const two_panels[] = {0, 0, tile_2x2, tile_2x3, tile_2x4, 0, 0, 0, tile_2x8};
  for (size_t p = 0; p < n_panels; p += 2) {
    const size_t panels = n_panels - p > 1 ? 2 : 1;
    const uint8_t *panel = w + p * panel_stride;
    size_t tokens;
    for (size_t t = 0; t < m; t += tokens) {
      int32_t *c = acc + t * acc_stride + p * BE_PANEL_ROWS;
      const int8_t *a = q + t * q_stride;
      tokens = m - t >= 8 ? 8 : m - t >= 4 ? 4 : m - t;
      if (tokens == 1)
        ternary_gemv_i8_avx512_vnni(c, panel, panel_stride, panels, k_blocks, a, q_sum[t]);
      else
        (panels > 1 ? two_panels : one_panel)[tokens](c, acc_stride, panel, panel_stride, k_blocks,
                                                      a, q_stride, q_sum + t);
    }
  }
}
