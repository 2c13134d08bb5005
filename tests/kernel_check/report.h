// SPDX-License-Identifier: MIT
// Counting, printing and timing; internal to the harness.
#ifndef KERNEL_CHECK_REPORT_H
#define KERNEL_CHECK_REPORT_H

#include "kernel_check.h"

void kc_report_begin(const char *kernel, const char *isa);
void kc_report_crash(const char *what);
void kc_report_end(void);
const char *kc_report_kernel(void);
const char *kc_report_isa(void);
bool kc_report_total(void); // prints the closing line; true when nothing failed

void kc_bench_begin(bool json);
void kc_bench_end(void);

#endif
