// SPDX-License-Identifier: MIT
// Kernel prototypes, the dispatch structure and the CPU's instruction sets, all generated from
// kernel_table.def and isa_table.def.
#ifndef BITNET_EDGE_KERNELS_H
#define BITNET_EDGE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "head_layout.h"
#include "status.h"

#if defined(__x86_64__) || defined(_M_X64)
#define BE_ARCH_X86 1
#else
#define BE_ARCH_X86 0
#endif
#if defined(__aarch64__) || defined(_M_ARM64)
#define BE_ARCH_ARM64 1
#else
#define BE_ARCH_ARM64 0
#endif
#if BE_ARCH_ARM64 || (defined(__arm__) && defined(__ARM_NEON))
#define BE_ARCH_ARM 1
#else
#define BE_ARCH_ARM 0
#endif

enum {
  BE_MAX_HEAD_DIM = 512,
  BE_MAX_HEADS_PER_KV = 64,
  BE_PANEL_ROWS = 16,  // rows of a P16 panel
  BE_BLOCK_K = 16,     // columns of a P16 block
  BE_BLOCK_BYTES = 64, // 16 rows x 16 columns x 2 bits
  BE_KV_GROUP = 32     // elements that share a scale in an int4 KV cache
};

typedef enum be_isa {
#define BE_ISA(name, requirement) BE_ISA_##name,
#include "isa_table.def"
#undef BE_ISA
  BE_ISA_COUNT
} be_isa;

typedef enum be_kernel_id {
#define BE_KERNEL(name, parameters) BE_KERNEL_##name,
#include "kernel_table.def"
#undef BE_KERNEL
  BE_KERNEL_COUNT
} be_kernel_id;

// name_fn is the kernel's type; every variant is declared through it.
#define BE_KERNEL(name, parameters) typedef void name##_fn parameters;
#include "kernel_table.def"
#undef BE_KERNEL
#define BE_KERNEL(name, parameters) name##_fn name##_scalar;
#include "kernel_table.def"
#undef BE_KERNEL
#define BE_VARIANT(isa, name) name##_fn name##_##isa;
#include "kernel_table.def"
#undef BE_VARIANT

// One pointer per kernel, and which ISA each came from: the only hop on the hot path.
typedef struct be_kernels {
#define BE_KERNEL(name, parameters) name##_fn *name;
#include "kernel_table.def"
#undef BE_KERNEL
  be_isa isa[BE_KERNEL_COUNT];
} be_kernels;

// Instruction sets of this CPU as a mask of 1 << BE_ISA_x; scalar is always set.
uint32_t be_cpu_detect(void);

// Fills `kernels` from the table for the instruction sets in `mask`.
void be_kernels_init(be_kernels *kernels, uint32_t mask);

// Masks `detected` to the sets up to and including `name` ("avx2", ...). BE_ERR_CPU when the name
// is unknown or the CPU lacks it; `mask` is then untouched.
be_status be_cpu_cap(const char *name, uint32_t detected, uint32_t *mask);

const char *be_isa_name(be_isa isa);
const char *be_isa_requirement(be_isa isa);
const char *be_kernel_name(be_kernel_id kernel);

#endif
