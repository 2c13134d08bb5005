// SPDX-License-Identifier: MIT
// Dot products of stored rows with a float32 vector, shared by dense_gemv (rows of weights) and
// attention (rows of keys).
//
// Four rows at a time share the loads of x and give eight independent chains of additions, enough
// to hide their latency. Rows follow each other in memory, so the next four rows lie exactly one
// group ahead: that is what the prefetch asks for.
#ifndef BITNET_EDGE_X86_DOT_AVX2_H
#define BITNET_EDGE_X86_DOT_AVX2_H

#include "x86/avx2.h"

BE_AVX2_INLINE const void *be_row_at(const void *w, size_t r, size_t k, be_float_format format) {
  return (const uint8_t *)w + r * k * be_float_bytes(format);
}

BE_AVX2_INLINE float be_dot(const void *w, size_t k, const float *x, be_float_format format) {
  be_m256x2 sum = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  size_t i = 0;
  for (; i + 16 <= k; i += 16)
    sum = be_add_products(sum, be_load16(w, i, format), be_load16(x, i, BE_FORMAT_F32));
  if (i < k)
    sum = be_add_products(sum, be_load16_partial(w, i, k - i, format),
                          be_load16_partial(x, i, k - i, BE_FORMAT_F32));
  return be_tree(sum);
}

BE_AVX2_INLINE __m128 be_dot_of_4(const void *w, size_t k, const float *x, be_float_format format) {
  const void *w0 = be_row_at(w, 0, k, format), *w1 = be_row_at(w, 1, k, format);
  const void *w2 = be_row_at(w, 2, k, format), *w3 = be_row_at(w, 3, k, format);
  const uint8_t *next = be_row_at(w, 4, k, format);
  const size_t row_bytes = (size_t)((const uint8_t *)w1 - (const uint8_t *)w0);
  const size_t step_bytes = format == BE_FORMAT_F32 ? 64 : 32;
  be_m256x2 s0 = {_mm256_setzero_ps(), _mm256_setzero_ps()}, s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 16 <= k; i += 16, next += step_bytes) {
    be_m256x2 v = be_load16(x, i, BE_FORMAT_F32);
    _mm_prefetch((const char *)next, _MM_HINT_T0);
    _mm_prefetch((const char *)(next + row_bytes), _MM_HINT_T0);
    _mm_prefetch((const char *)(next + 2 * row_bytes), _MM_HINT_T0);
    _mm_prefetch((const char *)(next + 3 * row_bytes), _MM_HINT_T0);
    s0 = be_add_products(s0, be_load16(w0, i, format), v);
    s1 = be_add_products(s1, be_load16(w1, i, format), v);
    s2 = be_add_products(s2, be_load16(w2, i, format), v);
    s3 = be_add_products(s3, be_load16(w3, i, format), v);
  }
  if (i < k) {
    be_m256x2 v = be_load16_partial(x, i, k - i, BE_FORMAT_F32);
    s0 = be_add_products(s0, be_load16_partial(w0, i, k - i, format), v);
    s1 = be_add_products(s1, be_load16_partial(w1, i, k - i, format), v);
    s2 = be_add_products(s2, be_load16_partial(w2, i, k - i, format), v);
    s3 = be_add_products(s3, be_load16_partial(w3, i, k - i, format), v);
  }
  return be_tree_of_4(s0, s1, s2, s3);
}

#endif
