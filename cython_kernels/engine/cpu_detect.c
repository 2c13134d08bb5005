// SPDX-License-Identifier: MIT
// Which instruction sets of isa_table.def this CPU and its operating system offer.
//
// x86: own cpuid and xgetbv. Compilers' __builtin_cpu_supports needs their run-time library (it
// returns 0 under zig's clang), and a feature bit alone does not say that the system saves the
// wide registers on a context switch: XCR0 does.
// ARM: Linux and Android tell through the auxiliary vector, Apple through sysctl, Windows through
// IsProcessorFeaturePresent. User space cannot read the identification registers itself.
#include "kernels.h"

enum { SCALAR = 1u << BE_ISA_scalar };

#if BE_ARCH_X86
#include <cpuid.h>

static uint64_t read_xcr0(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static int has_bits(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

uint32_t be_cpu_detect(void) {
  enum {
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_AVX = 1 << 28,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    LEAF7_EBX_AVX512F = 1 << 16,
    LEAF7_EBX_AVX512BW = 1 << 30,
    LEAF7_ECX_AVX512VNNI = 1 << 11,
    LEAF7_1_EAX_AVX_VNNI = 1 << 4,
    XCR0_YMM = 0x06, // XMM and YMM halves
    XCR0_ZMM = 0xe6  // those, opmasks, ZMM halves, ZMM 16-31
  };
  const uint32_t LEAF7_EBX_AVX512VL = 1u << 31; // beyond the range of an enumerator

  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) ||
      !has_bits(ecx, LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX | LEAF1_ECX_F16C))
    return SCALAR;
  uint64_t xcr0 = read_xcr0();
  if (!has_bits(xcr0, XCR0_YMM) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
      !has_bits(ebx, LEAF7_EBX_AVX2))
    return SCALAR;

  uint32_t mask = SCALAR | 1u << BE_ISA_avx2;
  if (has_bits(xcr0, XCR0_ZMM) && has_bits(ecx, LEAF7_ECX_AVX512VNNI) &&
      has_bits(ebx, LEAF7_EBX_AVX512F | LEAF7_EBX_AVX512BW | LEAF7_EBX_AVX512VL))
    mask |= 1u << BE_ISA_avx512_vnni;
  // Leaf 7 answers with its number of sub-leaves in eax.
  if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
      has_bits(eax, LEAF7_1_EAX_AVX_VNNI))
    mask |= 1u << BE_ISA_avx_vnni;
  return mask;
}

#elif BE_ARCH_ARM64

#if defined(__APPLE__)
#include <sys/sysctl.h>

static int has_feature(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

static int has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has_feature("hw.optional.arm.FEAT_I8MM"); }

#elif defined(_WIN32)
#include <windows.h>

static int has_dotprod(void) { return IsProcessorFeaturePresent(43) != 0; } // PF_ARM_V82_DP_...
static int has_i8mm(void) { return IsProcessorFeaturePresent(66) != 0; }    // PF_ARM_V82_I8MM_...

#elif defined(__linux__)
#include <sys/auxv.h>

// HWCAP_ASIMDDP and HWCAP2_I8MM, spelled out for C libraries older than the features.
static int has_dotprod(void) { return (getauxval(16 /* AT_HWCAP */) >> 20 & 1) != 0; }
static int has_i8mm(void) { return (getauxval(26 /* AT_HWCAP2 */) >> 13 & 1) != 0; }

#else
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif

uint32_t be_cpu_detect(void) {
  uint32_t mask = SCALAR | 1u << BE_ISA_neon; // every AArch64 CPU has Advanced SIMD
  if (has_dotprod()) {
    mask |= 1u << BE_ISA_dotprod;
    if (has_i8mm())
      mask |= 1u << BE_ISA_i8mm;
  }
  return mask;
}

#elif BE_ARCH_ARM

#if defined(__linux__)
#include <sys/auxv.h>

uint32_t be_cpu_detect(void) {
  int neon = (getauxval(16 /* AT_HWCAP */) >> 12 & 1) != 0; // HWCAP_NEON
  return SCALAR | (neon ? 1u << BE_ISA_neon : 0);
}
#else
uint32_t be_cpu_detect(void) { return SCALAR | 1u << BE_ISA_neon; } // built for NEON CPUs
#endif

#else
uint32_t be_cpu_detect(void) { return SCALAR; }
#endif
