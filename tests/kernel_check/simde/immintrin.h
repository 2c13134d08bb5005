// SPDX-License-Identifier: MIT
// Stands before the compiler's <immintrin.h> in the emulated build: x86's intrinsics as SIMDe
// computes them with SSE2 and plain C, so that the AVX kernels run on any x86-64 CPU.
//
// What SIMDe 0.7.4 (Debian 12's) lacks or does otherwise follows, as Intel's manuals
// define it. The names are macros, as SIMDe's are: a later SIMDe is not asked for them.
#ifndef KC_SIMDE_IMMINTRIN_H
#define KC_SIMDE_IMMINTRIN_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <stdint.h>
#include <string.h>

// The kernels' target attributes would let the compiler emit AVX, and no register holds a vector of
// theirs.
#define target(sets)
#define BE_OPAQUE(vector) ((void)0)

#define KC_INLINE static inline __attribute__((unused))

// float16
// A signalling NaN becomes quiet; SIMDe leaves it.
KC_INLINE simde__m256 kc_256_cvtph_ps(simde__m128i a) {
  simde__m256 x = simde_mm256_cvtph_ps(a);
  simde__m256 quiet = simde_mm256_castsi256_ps(simde_mm256_set1_epi32(0x400000));
  simde__m256 nan = simde_mm256_cmp_ps(x, x, SIMDE_CMP_UNORD_Q);
  return simde_mm256_or_ps(x, simde_mm256_and_ps(nan, quiet));
}

// 512 bits as two halves
typedef union kc_i512 {
  simde__m512i whole;
  simde__m256i half[2];
} kc_i512;

typedef union kc_f512 {
  simde__m512 whole;
  simde__m256 half[2];
  float lane[16];
} kc_f512;

KC_INLINE simde__m512i kc_cvtepi8_epi32(simde__m128i a) {
  simde__m128i high = simde_mm_srli_si128(a, 8);
  return (kc_i512){.half = {simde_mm256_cvtepi8_epi32(a), simde_mm256_cvtepi8_epi32(high)}}.whole;
}

KC_INLINE simde__m512i kc_cvtepu8_epi32(simde__m128i a) {
  simde__m128i high = simde_mm_srli_si128(a, 8);
  return (kc_i512){.half = {simde_mm256_cvtepu8_epi32(a), simde_mm256_cvtepu8_epi32(high)}}.whole;
}

KC_INLINE simde__m512i kc_cvtepu16_epi32(simde__m256i a) {
  simde__m128i low = simde_mm256_castsi256_si128(a), high = simde_mm256_extracti128_si256(a, 1);
  return (kc_i512){.half = {simde_mm256_cvtepu16_epi32(low), simde_mm256_cvtepu16_epi32(high)}}
      .whole;
}

KC_INLINE simde__m512 kc_cvtph_ps(simde__m256i a) {
  simde__m128i low = simde_mm256_castsi256_si128(a), high = simde_mm256_extracti128_si256(a, 1);
  return (kc_f512){.half = {kc_256_cvtph_ps(low), kc_256_cvtph_ps(high)}}.whole;
}

KC_INLINE simde__m512 kc_cvtepi32_ps(simde__m512i a) {
  kc_i512 x = {a};
  return (kc_f512){.half = {simde_mm256_cvtepi32_ps(x.half[0]), simde_mm256_cvtepi32_ps(x.half[1])}}
      .whole;
}

KC_INLINE simde__m512i kc_srai_epi32(simde__m512i a, unsigned imm8) {
  kc_i512 x = {a};
  for (int i = 0; i < 2; i++)
    x.half[i] = simde_mm256_srai_epi32(x.half[i], (int)imm8);
  return x.whole;
}

// The guide's tree: the lower half against the upper one, down to one lane.
KC_INLINE float kc_reduce_max_ps(simde__m512 a) {
  kc_f512 x = {a};
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++)
      x.lane[i] = x.lane[i] > x.lane[i + n] ? x.lane[i] : x.lane[i + n];
  return x.lane[0];
}

// Masked memory: elements outside the mask are not touched
KC_INLINE simde__m512 kc_maskz_loadu_ps(uint16_t mask, const float *from) {
  kc_f512 x = {.lane = {0}};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1)
      x.lane[i] = from[i];
  return x.whole;
}

KC_INLINE void kc_mask_storeu_ps(float *to, uint16_t mask, simde__m512 a) {
  kc_f512 x = {a};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1)
      to[i] = x.lane[i];
}

KC_INLINE simde__m256i kc_maskz_loadu_epi16(uint16_t mask, const uint16_t *from) {
  uint16_t x[16] = {0};
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1)
      x[i] = from[i];
  return simde_mm256_loadu_si256((const simde__m256i *)x);
}

// AVX-VNNI
// Four products of unsigned a and signed b are added to each 32-bit lane, without saturation.
KC_INLINE simde__m256i kc_dpbusd_avx_epi32(simde__m256i src, simde__m256i a, simde__m256i b) {
  uint32_t sum[8];
  uint8_t u[32];
  int8_t s[32];
  memcpy(sum, &src, sizeof sum);
  memcpy(u, &a, sizeof u);
  memcpy(s, &b, sizeof s);
  for (int i = 0; i < 32; i++)
    sum[i / 4] += (uint32_t)(u[i] * s[i]);
  return simde_mm256_loadu_si256((const simde__m256i *)sum);
}

#define __mmask16 uint16_t
#undef _mm256_cvtph_ps
#define _mm256_cvtph_ps kc_256_cvtph_ps
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 kc_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32 kc_cvtepu8_epi32
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 kc_cvtepu16_epi32
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps kc_cvtph_ps
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps kc_cvtepi32_ps
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 kc_srai_epi32
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps kc_reduce_max_ps
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps kc_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps kc_mask_storeu_ps
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16 kc_maskz_loadu_epi16
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 kc_dpbusd_avx_epi32

#endif
