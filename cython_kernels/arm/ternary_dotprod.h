// SPDX-License-Identifier: MIT
// The two instructions beyond ARMv8.0. Functions that use them carry BE_DOTPROD or BE_I8MM, whose
// spelling differs: gcc before 14 wants an architecture, clang the feature. The instructions are
// assembly because clang before 16 has no intrinsics for them in a file compiled for ARMv8.0.
#ifndef BITNET_EDGE_ARM_TERNARY_DOTPROD_H
#define BITNET_EDGE_ARM_TERNARY_DOTPROD_H

#include "arm/neon.h"

#if defined(__clang__)
#define BE_DOTPROD_TARGET target("dotprod")
#define BE_I8MM_TARGET target("dotprod,i8mm")
#else
#define BE_DOTPROD_TARGET target("arch=armv8.2-a+dotprod")
#define BE_I8MM_TARGET target("arch=armv8.2-a+dotprod+i8mm")
#endif
#define BE_DOTPROD __attribute__((BE_DOTPROD_TARGET))
#define BE_DOTPROD_INLINE static inline __attribute__((BE_DOTPROD_TARGET, always_inline))
#define BE_I8MM __attribute__((BE_I8MM_TARGET))
#define BE_I8MM_INLINE static inline __attribute__((BE_I8MM_TARGET, always_inline))

// sum[r] += codes[4r .. 4r + 3] . a[4 lane .. 4 lane + 3]; lane is a literal 0 .. 3.
#define BE_SDOT_LANE(sum, codes, a, lane)                                                          \
  __asm__("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(sum) : "w"(codes), "w"(a))

// sum is 2 x 2, row after row: sum[i][j] += codes[8i .. 8i + 7] . a[8j .. 8j + 7].
#define BE_SMMLA(sum, codes, a)                                                                    \
  __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(a))

// Field f (a constant) of every byte, shifted down.
BE_INLINE uint8x16_t be_field(uint8x16_t u, const int f) {
  const uint8x16_t mask = vdupq_n_u8(3);
  return f == 0   ? vandq_u8(u, mask)
         : f == 1 ? vandq_u8(vshrq_n_u8(u, 2), mask)
         : f == 2 ? vandq_u8(vshrq_n_u8(u, 4), mask)
                  : vshrq_n_u8(u, 6);
}

#endif
