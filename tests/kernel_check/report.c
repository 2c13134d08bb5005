// SPDX-License-Identifier: MIT
// Counting and printing of cases.
#include "report.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "guard.h"

enum { SHOWN_FAILURES = 3 }; // per kernel and instruction set

static const char *current_kernel, *current_isa;
static char description[256];
static bool case_failed;
static size_t passed, failed;                 // all
static size_t variant_passed, variant_failed; // of the current kernel and instruction set

const char *kc_report_kernel(void) { return current_kernel; }
const char *kc_report_isa(void) { return current_isa; }

void kc_report_begin(const char *kernel, const char *isa) {
  current_kernel = kernel;
  current_isa = isa;
  variant_passed = variant_failed = 0;
  kc_scratch_reset();
}

void kc_begin(kc_edge edge, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(description, sizeof description, format, arguments);
  va_end(arguments);
  if (length >= 0 && (size_t)length < sizeof description)
    snprintf(description + length, sizeof description - (size_t)length, " guard=%s",
             edge == KC_EDGE_END ? "end" : "begin");
  case_failed = false;
  kc_guard_begin(edge);
}

void kc_fail(const char *format, ...) {
  if (case_failed)
    return;
  case_failed = true;
  if (variant_failed >= SHOWN_FAILURES)
    return;
  printf("FAIL %s_%s [%s]: ", current_kernel, current_isa, description);
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
}

void kc_end(void) {
  if (!kc_guard_intact())
    kc_fail("wrote outside its output");
  if (case_failed)
    variant_failed++;
  else
    variant_passed++;
}

void kc_report_crash(const char *what) {
  case_failed = false;
  kc_fail("%s", what);
  variant_failed++;
}

void kc_report_end(void) {
  printf("%-24s %-12s %7zu passed", current_kernel, current_isa, variant_passed);
  if (variant_failed)
    printf(", %zu FAILED", variant_failed);
  printf("\n");
  fflush(stdout);
  passed += variant_passed;
  failed += variant_failed;
}

bool kc_report_total(void) {
  printf("%zu checks passed, %zu failed\n", passed, failed);
  return failed == 0 && passed > 0;
}

void kc_expect_i8(const char *what, const int8_t *expected, const int8_t *actual, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (expected[i] != actual[i]) {
      kc_fail("%s[%zu]: expected %d, got %d", what, i, expected[i], actual[i]);
      return;
    }
}

void kc_expect_u16(const char *what, const uint16_t *expected, const uint16_t *actual, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (expected[i] != actual[i]) {
      kc_fail("%s[%zu]: expected 0x%04x, got 0x%04x", what, i, expected[i], actual[i]);
      return;
    }
}

void kc_expect_i32(const char *what, const int32_t *expected, const int32_t *actual, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (expected[i] != actual[i]) {
      kc_fail("%s[%zu]: expected %ld, got %ld", what, i, (long)expected[i], (long)actual[i]);
      return;
    }
}

static bool same_float(float expected, float actual) {
  return memcmp(&expected, &actual, sizeof expected) == 0 || (isnan(expected) && isnan(actual)) ||
         (KC_FLUSHES_DENORMALS && fpclassify(expected) == FP_SUBNORMAL && actual == 0);
}

void kc_expect_f32(const char *what, const float *expected, const float *actual, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!same_float(expected[i], actual[i])) {
      kc_fail("%s[%zu]: expected %a, got %a", what, i, (double)expected[i], (double)actual[i]);
      return;
    }
}

void kc_expect_near(const char *what, double expected, double actual, double bound) {
  bool equal = expected == actual || (isnan(expected) && isnan(actual));
  if (!equal && !(fabs(expected - actual) <= bound))
    kc_fail("%s: expected %.9g within %.3g, got %.9g", what, expected, bound, actual);
}
