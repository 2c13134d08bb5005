// SPDX-License-Identifier: MIT
// Dot products of stored rows with a float32 vector, shared by dense_gemv (rows of weights) and
// attention (rows of keys). Two rows at a time share the loads of x and give eight independent
// chains of additions in 16 registers. Rows follow each other in memory, so the next two lie
// exactly one group ahead: that is what the prefetch asks for.
#ifndef BITNET_EDGE_ARM_DOT_NEON_H
#define BITNET_EDGE_ARM_DOT_NEON_H

#include "arm/neon.h"

BE_INLINE const void *be_row_at(const void *w, size_t r, size_t k, be_float_format format) {
  return (const uint8_t *)w + r * k * (format == BE_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t));
}

BE_INLINE float be_dot(const void *w, size_t k, const float *x, be_float_format format) {
  be_f32x16 sum = be_splat16(0);
  size_t i = 0;
  for (; i + 16 <= k; i += 16)
    sum = be_add_products(sum, be_load16(w, i, format), be_load16(x, i, BE_FORMAT_F32));
  if (i < k)
    sum = be_add_products(sum, be_load16_partial(w, i, k - i, format),
                          be_load16_partial(x, i, k - i, BE_FORMAT_F32));
  return be_tree(sum);
}

BE_INLINE void be_dot_of_2(float y[2], const void *w, size_t k, const float *x,
                           be_float_format format) {
  const void *w0 = w, *w1 = be_row_at(w, 1, k, format);
  const uint8_t *next0 = be_row_at(w, 2, k, format), *next1 = be_row_at(w, 3, k, format);
  const size_t step_bytes = format == BE_FORMAT_F32 ? 64 : 32;
  be_f32x16 s0 = be_splat16(0), s1 = be_splat16(0);
  size_t i = 0;
  for (; i + 16 <= k; i += 16, next0 += step_bytes, next1 += step_bytes) {
    be_f32x16 v = be_load16(x, i, BE_FORMAT_F32);
    __builtin_prefetch(next0);
    __builtin_prefetch(next1);
    s0 = be_add_products(s0, be_load16(w0, i, format), v);
    s1 = be_add_products(s1, be_load16(w1, i, format), v);
  }
  if (i < k) {
    be_f32x16 v = be_load16_partial(x, i, k - i, BE_FORMAT_F32);
    s0 = be_add_products(s0, be_load16_partial(w0, i, k - i, format), v);
    s1 = be_add_products(s1, be_load16_partial(w1, i, k - i, format), v);
  }
  y[0] = be_tree(s0);
  y[1] = be_tree(s1);
}

#endif
