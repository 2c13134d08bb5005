// SPDX-License-Identifier: MIT
// Attention, see scalar/attention_tiles.h for the loops: 16 lanes are one register, and 4 queries
// times 4 keys (or times 64 columns) are 16 sums.
#include <math.h>

#include "x86/avx512.h"

#define INLINE BE_AVX512_INLINE
#define NOINLINE BE_AVX512_NOINLINE
#define UNROLL BE_UNROLL
enum { TILE_QUERIES = 4, TILE_SUMS = 16 };

typedef __m512 v16;

INLINE v16 zero16(void) { return _mm512_setzero_ps(); }
INLINE v16 splat16(const float *x) { return _mm512_set1_ps(*x); }
INLINE v16 load16(const float *x) { return _mm512_loadu_ps(x); }
INLINE void store16(float *y, v16 v) { _mm512_storeu_ps(y, v); }
INLINE v16 add16(v16 a, v16 b) { return _mm512_add_ps(a, b); }
INLINE v16 subtract16(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
INLINE v16 multiply16(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
INLINE v16 add_products(v16 sum, v16 a, v16 b) { return be_add_product16(sum, a, b); }
INLINE v16 exp16(v16 x) { return be_exp16(x); }
INLINE v16 greater16(v16 a, v16 m) { return _mm512_max_ps(a, m); } // m where a is a NaN
INLINE float largest(v16 m) { return _mm512_reduce_max_ps(m); }
INLINE float tree(v16 v) { return be_tree16(v); }

#include "scalar/kv_rows.h"

INLINE v16 load_row(be_kv_rows rows, size_t j, size_t d, const be_kv_format format) {
  const uint8_t *row = rows.data + j * rows.row_bytes;
  if (format == BE_KV_F32 || format == BE_KV_F16)
    return be_load16z(row, d, format == BE_KV_F32 ? BE_FORMAT_F32 : BE_FORMAT_F16);
  if (format == BE_KV_I8)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + d))));
  // The permutation looks at four bits of each index only.
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const uint8_t *bytes = row + d / BE_KV_GROUP * (BE_KV_GROUP / 2);
  __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
  if (d % BE_KV_GROUP != 0)
    codes = _mm512_srli_epi32(codes, 4);
  const uint16_t *scales = (const uint16_t *)(const void *)(rows.scales + j * rows.scale_bytes);
  uint32_t scale = scales[d / BE_KV_GROUP];
  __m512 s = _mm512_castsi512_ps(_mm512_set1_epi32((int32_t)(scale << 16)));
  return _mm512_mul_ps(_mm512_permutexvar_ps(codes, values), s);
}

INLINE v16 load_row_end(be_kv_rows rows, size_t j, size_t d, size_t n, const be_kv_format format) {
  return be_load16_masked(rows.data + j * rows.row_bytes, d, be_first_lanes(n),
                          format == BE_KV_F32 ? BE_FORMAT_F32 : BE_FORMAT_F16);
}

// Two trees become one vector by a level: what stays is blended, what is added to it crosses over,
// which takes one shuffle where two operands of an addition would take two.
//
// The first level: sums of a in lanes 0-7, of b in lanes 8-15.
INLINE v16 tree8_of_2(v16 a, v16 b) {
  __m512i crossed = _mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), 0x4e);
  return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_castsi512_ps(crossed));
}

// The second: 128-bit lane i holds four sums of the i-th argument.
INLINE v16 tree4_of_4(v16 a, v16 b, v16 c, v16 d) {
  const __m512i cross =
      _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  v16 ac = tree8_of_2(a, c), bd = tree8_of_2(b, d);
  return _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, ac, bd), _mm512_permutex2var_ps(ac, cross, bd));
}

// The third, in each 128-bit lane: two sums of a, then two of b.
INLINE v16 tree2_of_2(v16 a, v16 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, 0x4e));
}

// Sixteen trees at once, four queries times four keys.
INLINE void store_16_dots(float *s, const v16 *sums) {
  v16 key0 = tree4_of_4(sums[0], sums[4], sums[8], sums[12]);
  v16 key1 = tree4_of_4(sums[1], sums[5], sums[9], sums[13]);
  v16 key2 = tree4_of_4(sums[2], sums[6], sums[10], sums[14]);
  v16 key3 = tree4_of_4(sums[3], sums[7], sums[11], sums[15]);
  v16 keys01 = tree2_of_2(key0, key1), keys23 = tree2_of_2(key2, key3);
  v16 dots = _mm512_add_ps(_mm512_shuffle_ps(keys01, keys23, 0x88),
                           _mm512_shuffle_ps(keys01, keys23, 0xdd));
  _mm_storeu_ps(s, _mm512_castps512_ps128(dots));
  _mm_storeu_ps(s + BE_BLOCK_KEYS, _mm512_extractf32x4_ps(dots, 1));
  _mm_storeu_ps(s + 2 * BE_BLOCK_KEYS, _mm512_extractf32x4_ps(dots, 2));
  _mm_storeu_ps(s + 3 * BE_BLOCK_KEYS, _mm512_extractf32x4_ps(dots, 3));
}

INLINE void store_dots(float *s, const v16 *sums, const size_t queries, const size_t keys) {
  if (queries == 4 && keys == 4) {
    store_16_dots(s, sums);
    return;
  }
  UNROLL for (size_t h = 0; h < queries; h++) {
    const v16 *sum = sums + h * keys;
    if (keys == 1)
      s[h * BE_BLOCK_KEYS] = be_tree16(sum[0]);
    UNROLL for (size_t i = 0; i + 4 <= keys; i += 4) {
      _mm_storeu_ps(s + h * BE_BLOCK_KEYS + i,
                    be_tree_of_4(be_halves(sum[i]), be_halves(sum[i + 1]), be_halves(sum[i + 2]),
                                 be_halves(sum[i + 3])));
    }
  }
}

#include "scalar/attention_tiles.h"

BE_AVX512 void attention_f32_avx512_vnni(const be_attention *a) { attend(a, &loops_F32); }
BE_AVX512 void attention_f16_avx512_vnni(const be_attention *a) { attend(a, &loops_F16); }
BE_AVX512 void attention_i8_avx512_vnni(const be_attention *a) { attend(a, &loops_I8); }
BE_AVX512 void attention_i4_avx512_vnni(const be_attention *a) { attend(a, &loops_I4); }
