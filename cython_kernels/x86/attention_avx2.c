// SPDX-License-Identifier: MIT
// Attention, see scalar/attention_tiles.h for the loops: 16 lanes are two registers, and 2 queries
// times 2 keys (or times 32 columns) are four sums in eight of the 16 registers.
#include <math.h>

#include "scalar/kv_rows.h"
#include "x86/avx2.h"

#define INLINE BE_AVX2_INLINE
#define NOINLINE BE_AVX2_NOINLINE
#define UNROLL BE_UNROLL
enum { TILE_QUERIES = 2, TILE_SUMS = 4 };

typedef be_m256x2 v16;

INLINE v16 zero16(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE v16 add_products(v16 sum, v16 a, v16 b) { return be_add_products(sum, a, b); }
INLINE v16 exp16(v16 x) { return (v16){be_exp8(x.low), be_exp8(x.high)}; }
INLINE float tree(v16 v) { return be_tree(v); }

// Keeps gcc from loading again, as a memory operand, at each use.
INLINE v16 in_registers(v16 v) {
  BE_OPAQUE(v.low);
  BE_OPAQUE(v.high);
  return v;
}

INLINE v16 load16(const float *x) { return in_registers(be_load16(x, 0, BE_FORMAT_F32)); }

INLINE v16 splat16(const float *x) {
  __m256 v = _mm256_broadcast_ss(x);
  return (v16){v, v};
}

INLINE void store16(float *y, v16 v) {
  _mm256_storeu_ps(y, v.low);
  _mm256_storeu_ps(y + 8, v.high);
}

INLINE v16 add16(v16 a, v16 b) {
  return (v16){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

INLINE v16 subtract16(v16 a, v16 b) {
  return (v16){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

INLINE v16 multiply16(v16 a, v16 b) {
  return (v16){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

INLINE v16 greater16(v16 a, v16 m) { // m where a is a NaN
  return (v16){_mm256_max_ps(a.low, m.low), _mm256_max_ps(a.high, m.high)};
}

INLINE float largest(v16 m) {
  __m256 m8 = _mm256_max_ps(m.low, m.high);
  __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  m4 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m4, _mm_movehdup_ps(m4)));
}

INLINE v16 load_row(be_kv_rows rows, size_t j, size_t d, const be_kv_format format) {
  const uint8_t *row = rows.data + j * rows.row_bytes;
  if (format == BE_KV_F32 || format == BE_KV_F16)
    return in_registers(be_load16(row, d, format == BE_KV_F32 ? BE_FORMAT_F32 : BE_FORMAT_F16));
  if (format == BE_KV_I8) {
    __m256i low = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + d)));
    __m256i high = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + d + 8)));
    return (v16){_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
  }
  __m128i codes = _mm_loadu_si128((const __m128i *)(row + d / BE_KV_GROUP * (BE_KV_GROUP / 2)));
  if (d % BE_KV_GROUP != 0)
    codes = _mm_srli_epi16(codes, 4);
  codes = _mm_sub_epi8(_mm_and_si128(codes, _mm_set1_epi8(15)), _mm_set1_epi8(8));
  const uint16_t *scales = (const uint16_t *)(const void *)(rows.scales + j * rows.scale_bytes);
  uint32_t scale = scales[d / BE_KV_GROUP];
  __m256 s = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)(scale << 16)));
  __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)));
  return in_registers((v16){_mm256_mul_ps(low, s), _mm256_mul_ps(high, s)});
}

INLINE v16 load_row_end(be_kv_rows rows, size_t j, size_t d, size_t n, const be_kv_format format) {
  return be_load16_partial(rows.data + j * rows.row_bytes, d, n,
                           format == BE_KV_F32 ? BE_FORMAT_F32 : BE_FORMAT_F16);
}

INLINE void store_dots(float *s, const v16 *sums, const size_t queries, const size_t keys) {
  if (queries * keys < 4) {
    UNROLL for (size_t h = 0; h < queries; h++) { s[h * BE_BLOCK_KEYS] = be_tree(sums[h]); }
    return;
  }
  __m128 dots = be_tree_of_4(sums[0], sums[1], sums[2], sums[3]);
  _mm_storel_pi((__m64 *)s, dots);
  _mm_storeh_pi((__m64 *)(s + (queries == 1 ? 2 : BE_BLOCK_KEYS)), dots);
}

#include "scalar/attention_tiles.h"

BE_AVX2 void attention_f32_avx2(const be_attention *a) { attend(a, &loops_F32); }
BE_AVX2 void attention_f16_avx2(const be_attention *a) { attend(a, &loops_F16); }
BE_AVX2 void attention_i8_avx2(const be_attention *a) { attend(a, &loops_I8); }
BE_AVX2 void attention_i4_avx2(const be_attention *a) { attend(a, &loops_I4); }
