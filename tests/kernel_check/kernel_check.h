// SPDX-License-Identifier: MIT
// What the checks of single kernels (check_*.c) share; kernel_check.c explains the whole.
#ifndef KERNEL_CHECK_H
#define KERNEL_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

// 32-bit NEON flushes denormals to zero, so float results equal the scalar ones only where neither
// operands nor intermediate results are denormal: the fills keep away from them there, and a zero
// may stand for a denormal result.
#if BE_ARCH_ARM && !BE_ARCH_ARM64
#define KC_FLUSHES_DENORMALS 1
#else
#define KC_FLUSHES_DENORMALS 0
#endif

// The kernel under test: k->name(...) after the real be_kernels_init, which took it from `isa`.
typedef struct kc_variant {
  const be_kernels *k;
  be_isa isa;
  bool quick; // a small set of sizes, for emulators
} kc_variant;

// One check_NAME and one bench_NAME for every row of the kernel table: a kernel without them
// does not link.
#define BE_KERNEL(name, parameters)                                                                \
  void check_##name(const kc_variant *v);                                                          \
  void bench_##name(const kc_variant *v);
#include "kernel_table.def"
#undef BE_KERNEL

// --- cases -------------------------------------------------------------------------------------

// Every case runs twice: buffers end right before an inaccessible page, or begin right after one.
typedef enum kc_edge { KC_EDGE_END, KC_EDGE_BEGIN, KC_EDGE_COUNT } kc_edge;

#define KC_FOR_EDGES(edge) for (kc_edge edge = KC_EDGE_END; edge < KC_EDGE_COUNT; edge++)

// Begins a case: forgets all buffers of the last one. The text is printed when the case fails.
void kc_begin(kc_edge edge, const char *format, ...) __attribute__((format(printf, 2, 3)));

// `bytes` of memory at a guard page, filled with 0xa5, the other side surrounded by canaries.
void *kc_buffer(size_t bytes);

// Compares; the first difference fails the case. NaNs are equal to each other.
void kc_expect_i8(const char *what, const int8_t *expected, const int8_t *actual, size_t n);
void kc_expect_u16(const char *what, const uint16_t *expected, const uint16_t *actual, size_t n);
void kc_expect_i32(const char *what, const int32_t *expected, const int32_t *actual, size_t n);
void kc_expect_f32(const char *what, const float *expected, const float *actual, size_t n);
// |expected - actual| <= bound, or both NaN.
void kc_expect_near(const char *what, double expected, double actual, double bound);
void kc_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Ends a case: looks at the canaries and counts it.
void kc_end(void);

// Plain zeroed memory for expected results, valid until the next kernel; never NULL.
void *kc_scratch(size_t bytes);

// --- data --------------------------------------------------------------------------------------

uint32_t kc_random(void);
size_t kc_random_below(size_t n);

typedef enum kc_fill {
  KC_FILL_NORMAL,  // about N(0, 1)
  KC_FILL_WIDE,    // both signs, exponents over a wide range
  KC_FILL_ZERO,    // +0 and -0
  KC_FILL_MAXIMUM, // +-FLT_MAX: products and sums overflow
  KC_FILL_SPECIAL, // NaN, infinities, denormals and zeros between numbers
  KC_FILL_COUNT
} kc_fill;

const char *kc_fill_name(kc_fill fill);
void kc_fill_f32(float *x, size_t n, kc_fill fill);

// --- benchmark ---------------------------------------------------------------------------------

// for (kc_timer timer = kc_timer_begin(v, "label", bytes, macs); kc_timer_next(&timer);)
//   for (size_t i = 0; i < timer.repeats; i++)
//     call;
// `bytes` and `macs` are those of one call.
typedef struct kc_timer {
  const kc_variant *v;
  const char *label;
  double bytes, macs;
  size_t repeats;
  size_t samples;
  double start;
  double ns[21];
} kc_timer;

kc_timer kc_timer_begin(const kc_variant *v, const char *label, double bytes, double macs);
bool kc_timer_next(kc_timer *timer);

#endif
