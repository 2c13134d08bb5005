// SPDX-License-Identifier: MIT
// The target attribute of the AVX-VNNI kernels: AVX2 with the VEX-encoded vpdpbusd.
#ifndef BITNET_EDGE_X86_AVX_VNNI_H
#define BITNET_EDGE_X86_AVX_VNNI_H

#include "x86/avx2.h"

#define BE_AVX_VNNI __attribute__((target("avx2,f16c,avxvnni")))
#define BE_AVX_VNNI_INLINE static inline __attribute__((target("avx2,f16c,avxvnni"), always_inline))
#define BE_AVX_VNNI_NOINLINE static __attribute__((target("avx2,f16c,avxvnni"), noinline))

#endif
