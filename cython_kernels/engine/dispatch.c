// SPDX-License-Identifier: MIT
// The choice of kernels at run time, generated from kernel_table.def and isa_table.def.
#include <string.h>

#include "kernels.h"

// Scalar first, then every variant the mask allows: rows ascend in preference, the last one wins.
void be_kernels_init(be_kernels *kernels, uint32_t mask) {
#define BE_KERNEL(kernel, parameters)                                                              \
  kernels->kernel = kernel##_scalar;                                                               \
  kernels->isa[BE_KERNEL_##kernel] = BE_ISA_scalar;
#include "kernel_table.def"
#undef BE_KERNEL

#define BE_VARIANT(set, kernel)                                                                    \
  if (mask >> BE_ISA_##set & 1) {                                                                  \
    kernels->kernel = kernel##_##set;                                                              \
    kernels->isa[BE_KERNEL_##kernel] = BE_ISA_##set;                                               \
  }
#include "kernel_table.def"
#undef BE_VARIANT
  (void)mask; // unused where no variant exists
}

static const char *const isa_names[] = {
#define BE_ISA(name, requirement) #name,
#include "isa_table.def"
#undef BE_ISA
};

static const char *const isa_requirements[] = {
#define BE_ISA(name, requirement) requirement,
#include "isa_table.def"
#undef BE_ISA
};

static const char *const kernel_names[] = {
#define BE_KERNEL(name, parameters) #name,
#include "kernel_table.def"
#undef BE_KERNEL
};

be_status be_cpu_cap(const char *name, uint32_t detected, uint32_t *mask) {
  for (int isa = 0; isa < BE_ISA_COUNT; isa++)
    if (strcmp(name, isa_names[isa]) == 0) {
      if (!(detected >> isa & 1))
        return BE_ERR_CPU;
      *mask = detected & ((2u << isa) - 1);
      return BE_OK;
    }
  return BE_ERR_CPU;
}

const char *be_isa_name(be_isa isa) {
  return (unsigned)isa < BE_ISA_COUNT ? isa_names[isa] : "unknown";
}

const char *be_isa_requirement(be_isa isa) {
  return (unsigned)isa < BE_ISA_COUNT ? isa_requirements[isa] : "unknown";
}

const char *be_kernel_name(be_kernel_id kernel) {
  return (unsigned)kernel < BE_KERNEL_COUNT ? kernel_names[kernel] : "unknown";
}
