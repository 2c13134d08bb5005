// SPDX-License-Identifier: MIT
// Rows of a quantised KV cache as float lanes, see scalar/attention_quantized.c for the layouts.
#ifndef BITNET_EDGE_X86_CODES_AVX2_H
#define BITNET_EDGE_X86_CODES_AVX2_H

#include "scalar/code_rows.h"
#include "x86/avx2.h"

// Elements d .. d + 15 of row j, d a multiple of 16; int8 ones without their scale.
BE_AVX2_INLINE be_m256x2 be_load_codes(be_code_rows rows, size_t j, size_t d,
                                       be_code_format format) {
  const uint8_t *row = rows.codes + j * rows.row_bytes;
  if (format == BE_CODES_I8) {
    __m256i low = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + d)));
    __m256i high = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + d + 8)));
    return (be_m256x2){_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
  }
  __m128i codes = _mm_loadu_si128((const __m128i *)(row + d / BE_KV_GROUP * (BE_KV_GROUP / 2)));
  if (d % BE_KV_GROUP != 0)
    codes = _mm_srli_epi16(codes, 4);
  codes = _mm_sub_epi8(_mm_and_si128(codes, _mm_set1_epi8(15)), _mm_set1_epi8(8));
  uint32_t scale = ((const uint16_t *)rows.scales)[j * rows.row_scales + d / BE_KV_GROUP];
  __m256 s = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)(scale << 16)));
  __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)));
  return (be_m256x2){_mm256_mul_ps(low, s), _mm256_mul_ps(high, s)};
}

#endif
