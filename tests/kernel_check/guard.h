// SPDX-License-Identifier: MIT
// Guarded buffers, scratch memory and random data; internal to the harness.
#ifndef KERNEL_CHECK_GUARD_H
#define KERNEL_CHECK_GUARD_H

#include "kernel_check.h"

bool kc_guard_init(void);
void kc_guard_begin(kc_edge edge); // forgets all buffers
bool kc_guard_intact(void);        // are the canaries of all buffers alive?
void kc_scratch_reset(void);
void kc_random_seed(uint64_t seed);

#endif
