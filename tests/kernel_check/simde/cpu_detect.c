// SPDX-License-Identifier: MIT
// The emulated CPU has every instruction set.
#include "kernels.h"

uint32_t be_cpu_detect(void) { return (1u << BE_ISA_COUNT) - 1; }
