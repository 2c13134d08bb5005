// SPDX-License-Identifier: MIT
// One-pass attention over int8 and int4 codes, see scalar/attention_quantized.c for the formulas
// and attention_quantized_avx2.c for the shape of the loops. 16 lanes are one register:
//
//   dots:    heads x keys sums         4x4, 1x8
//   weigh:   heads x 16 consecutive d  4x4, 1x8
//
// Arrays of sums have constant indices after unrolling: they are registers.
#include "scalar/code_rows.h"
#include "x86/avx512.h"
#include "x86/online_softmax_avx2.h"

enum { MAX_SUMS = 16, PREFETCH_ROWS = 16 };

// Elements d .. d + 15 of row j, d a multiple of 16; int8 ones without their scale.
BE_AVX512_INLINE __m512 load_codes(be_code_rows rows, size_t j, size_t d, be_code_format format) {
  const uint8_t *row = rows.codes + j * rows.row_bytes;
  if (format == BE_CODES_I8)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + d))));
  // The permutation looks at four bits of each index only.
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const uint8_t *bytes = row + d / BE_KV_GROUP * (BE_KV_GROUP / 2);
  __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
  if (d % BE_KV_GROUP != 0)
    codes = _mm512_srli_epi32(codes, 4);
  uint32_t scale = ((const uint16_t *)rows.scales)[j * rows.row_scales + d / BE_KV_GROUP];
  __m512 s = _mm512_castsi512_ps(_mm512_set1_epi32((int32_t)(scale << 16)));
  return _mm512_mul_ps(_mm512_permutexvar_ps(codes, values), s);
}

BE_AVX512_INLINE void prefetch_row(be_code_rows rows, size_t j) {
  const char *row = (const char *)rows.codes + j * rows.row_bytes;
  for (size_t i = 0; i < rows.row_bytes; i += 64)
    _mm_prefetch(row + i, _MM_HINT_T0);
}

// s[64 * h + j + i] = dot(q_h, k_(j+i)) for `heads` heads and `keys` (1, 4 or 8) keys.
BE_AVX512_INLINE void dots(float *s, const float *q, size_t stride, const size_t heads,
                           be_code_rows k, be_code_rows v, size_t j, const size_t keys,
                           be_code_format format) {
  __m512 sums[MAX_SUMS];
  BE_UNROLL for (size_t i = 0; i < heads * keys; i++) { sums[i] = _mm512_setzero_ps(); }
  for (size_t i = 0; i < keys; i++) {
    prefetch_row(k, j + i + PREFETCH_ROWS);
    prefetch_row(v, j + i);
  }
  for (size_t d = 0; d < stride; d += 16) {
    __m512 x[BE_HEAD_TILE];
    BE_UNROLL for (size_t h = 0; h < heads; h++) { x[h] = _mm512_loadu_ps(q + h * stride + d); }
    BE_UNROLL for (size_t i = 0; i < keys; i++) {
      __m512 key = load_codes(k, j + i, d, format);
      BE_UNROLL for (size_t h = 0; h < heads; h++) {
        sums[h * keys + i] = be_add_product16(sums[h * keys + i], x[h], key);
      }
    }
  }
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    float *scores = s + h * BE_BLOCK_KEYS + j;
    const __m512 *sum = sums + h * keys;
    if (keys == 1)
      scores[0] = be_tree16(sum[0]);
    BE_UNROLL for (size_t i = 0; i + 4 <= keys; i += 4) {
      _mm_storeu_ps(scores + i, be_tree_of_4(be_halves(sum[i]), be_halves(sum[i + 1]),
                                             be_halves(sum[i + 2]), be_halves(sum[i + 3])));
    }
  }
}

// out_h[d] += w_h[j] * v_j[d], j in order, for `registers` times 16 consecutive d; w_h at
// w + 64 * h.
BE_AVX512_INLINE void weigh(float *out, size_t stride, const float *w, const size_t heads,
                            be_code_rows v, size_t n, size_t d, const size_t registers,
                            be_code_format format) {
  __m512 sums[MAX_SUMS];
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      sums[h * registers + i] = _mm512_loadu_ps(out + h * stride + d + 16 * i);
    }
  }
  for (size_t j = 0; j < n; j++) {
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      __m512 value = load_codes(v, j, d + 16 * i, format);
      BE_UNROLL for (size_t h = 0; h < heads; h++) {
        __m512 weight = _mm512_set1_ps(w[h * BE_BLOCK_KEYS + j]);
        sums[h * registers + i] = be_add_product16(sums[h * registers + i], weight, value);
      }
    }
  }
  BE_UNROLL for (size_t h = 0; h < heads; h++) {
    BE_UNROLL for (size_t i = 0; i < registers; i++) {
      _mm512_storeu_ps(out + h * stride + d + 16 * i, sums[h * registers + i]);
    }
  }
}

BE_AVX512_INLINE void attend_heads(be_softmax *states, float *out, const float *q,
                                   const size_t heads, size_t stride, be_code_rows k,
                                   be_code_rows v, size_t n, float scale, be_code_format format) {
  _Alignas(64) float s[BE_HEAD_TILE * BE_BLOCK_KEYS];
  const size_t width = heads == 1 ? 8 : 4; // keys of dots, registers of weigh
  size_t j = 0, d = 0, step = 16 * width;
  for (; j + width <= n; j += width)
    dots(s, q, stride, heads, k, v, j, width, format);
  for (; j < n; j++)
    dots(s, q, stride, heads, k, v, j, 1, format);
  for (size_t h = 0; h < heads; h++) {
    float *scores = s + h * BE_BLOCK_KEYS;
    be_finish_scores(scores, k, n, scale, format);
    be_softmax_step_avx2(&states[h], scores, n, out + h * stride, stride);
    be_scale_weights(scores, v, n, format);
  }
  for (; d + step <= stride; d += step)
    weigh(out, stride, s, heads, v, n, d, width, format);
  for (; d + 32 <= stride; d += 32)
    weigh(out, stride, s, heads, v, n, d, 2, format);
  for (; d < stride; d += 16)
    weigh(out, stride, s, heads, v, n, d, 1, format);
}

// See be_attend_block.
BE_AVX512_INLINE void attend_block(be_softmax *states, float *out, const float *q, size_t heads,
                                   size_t stride, be_code_rows k, be_code_rows v, size_t n,
                                   float scale, be_code_format format) {
  if (heads == BE_HEAD_TILE)
    attend_heads(states, out, q, BE_HEAD_TILE, stride, k, v, n, scale, format);
  else
    attend_heads(states, out, q, 1, stride, k, v, n, scale, format);
}

BE_AVX512_NOINLINE void attend_block_i8(be_softmax *states, float *out, const float *q,
                                        size_t heads, size_t stride, be_code_rows k, be_code_rows v,
                                        size_t n, float scale) {
  attend_block(states, out, q, heads, stride, k, v, n, scale, BE_CODES_I8);
}

BE_AVX512 void attention_i8_avx512_vnni(float *out, const float *q, const int8_t *k,
                                        const float *k_scale, const int8_t *v, const float *v_scale,
                                        size_t n_heads, size_t n_keys, size_t head_dim,
                                        float scale) {
  be_attend_quantized(
      attend_block_i8, BE_CODES_I8, out, q, be_rows_of(k, k_scale, head_dim, BE_CODES_I8),
      be_rows_of(v, v_scale, head_dim, BE_CODES_I8), n_heads, n_keys, head_dim, scale);
}

BE_AVX512_NOINLINE void attend_block_i4(be_softmax *states, float *out, const float *q,
                                        size_t heads, size_t stride, be_code_rows k, be_code_rows v,
                                        size_t n, float scale) {
  attend_block(states, out, q, heads, stride, k, v, n, scale, BE_CODES_I4);
}

BE_AVX512 void attention_i4_avx512_vnni(float *out, const float *q, const uint8_t *k,
                                        const uint16_t *k_scale, const uint8_t *v,
                                        const uint16_t *v_scale, size_t n_heads, size_t n_keys,
                                        size_t head_dim, float scale) {
  be_attend_quantized(
      attend_block_i4, BE_CODES_I4, out, q, be_rows_of(k, k_scale, head_dim, BE_CODES_I4),
      be_rows_of(v, v_scale, head_dim, BE_CODES_I4), n_heads, n_keys, head_dim, scale);
}
