// SPDX-License-Identifier: MIT
// Guarded buffers, scratch memory and random data.
//
//   | no access | ........ region ........ | no access |
//                [buffer][canary 256 B]                     KC_EDGE_BEGIN
//                      [canary 256 B][buffer]               KC_EDGE_END
#define _GNU_SOURCE
#include "guard.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
  GUARD_BYTES = 64 * 1024, // a page, whatever its size
  REGION_BYTES = 4 * 1024 * 1024,
  REGIONS = 8,
  CANARY_BYTES = 256,
  CANARY = 0xc3,
  UNWRITTEN = 0xa5,
  SCRATCH_BYTES = 16 * 1024 * 1024
};

static uint8_t *regions[REGIONS];
static size_t sizes[REGIONS];
static size_t used;
static kc_edge edge;
static uint8_t *scratch;
static size_t scratch_used;

bool kc_guard_init(void) {
  for (size_t i = 0; i < REGIONS; i++) {
    uint8_t *base =
        mmap(NULL, REGION_BYTES + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED ||
        mprotect(base + GUARD_BYTES, REGION_BYTES, PROT_READ | PROT_WRITE) != 0)
      return false;
    regions[i] = base + GUARD_BYTES;
  }
  scratch = malloc(SCRATCH_BYTES);
  return scratch != NULL;
}

void kc_guard_begin(kc_edge new_edge) {
  used = 0;
  edge = new_edge;
}

static uint8_t *buffer_begin(size_t i) {
  return edge == KC_EDGE_END ? regions[i] + REGION_BYTES - sizes[i] : regions[i];
}

static uint8_t *canary_begin(size_t i) {
  return edge == KC_EDGE_END ? buffer_begin(i) - CANARY_BYTES : buffer_begin(i) + sizes[i];
}

static void give_up(const char *what) {
  fprintf(stderr, "kernel_check: %s\n", what);
  exit(1);
}

void *kc_buffer(size_t bytes) {
  if (used == REGIONS || bytes > REGION_BYTES - CANARY_BYTES)
    give_up("a check wants more guarded memory than there is");
  sizes[used] = bytes;
  uint8_t *buffer = buffer_begin(used);
  memset(buffer, UNWRITTEN, bytes);
  memset(canary_begin(used), CANARY, CANARY_BYTES);
  used++;
  return buffer;
}

bool kc_guard_intact(void) {
  for (size_t i = 0; i < used; i++)
    for (size_t j = 0; j < CANARY_BYTES; j++)
      if (canary_begin(i)[j] != CANARY)
        return false;
  return true;
}

void kc_scratch_reset(void) { scratch_used = 0; }

void *kc_scratch(size_t bytes) {
  if (bytes > SCRATCH_BYTES - scratch_used)
    give_up("a check wants more scratch memory than there is");
  uint8_t *memory = scratch + scratch_used;
  scratch_used += (bytes + 63) & ~(size_t)63;
  return memset(memory, 0, bytes);
}

// splitmix64 (Steele, Lea and Flood, 2014)
static uint64_t random_state;

void kc_random_seed(uint64_t seed) { random_state = seed; }

uint32_t kc_random(void) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (uint32_t)((z ^ z >> 31) >> 32);
}

size_t kc_random_below(size_t n) { return (size_t)((uint64_t)kc_random() * n >> 32); }

const char *kc_fill_name(kc_fill fill) {
  static const char *const names[] = {"normal", "wide", "zero", "maximum", "special"};
  return names[fill];
}

// The sum of four uniform numbers is close enough to a normal one.
static float normal(void) {
  double sum = 0;
  for (int i = 0; i < 4; i++)
    sum += kc_random() / 4294967296.0 - 0.5;
  return (float)(sum * 1.7320508);
}

static float wide(void) {
  int range = KC_FLUSHES_DENORMALS ? 10 : 60;
  float mantissa = 1.0f + (float)(kc_random() >> 9) * 0x1p-23f;
  float magnitude = ldexpf(mantissa, (int)kc_random_below(2 * range + 1) - range);
  return kc_random() & 1 ? -magnitude : magnitude;
}

static float special(void) {
  switch (kc_random_below(10)) {
  case 0:
    return NAN;
  case 1:
    return kc_random() & 1 ? INFINITY : -INFINITY;
  case 2:
    return kc_random() & 1 ? 0.0f : -0.0f;
  case 3:
    return KC_FLUSHES_DENORMALS ? 1.0f : ldexpf((float)kc_random_below(1000), -149);
  case 4:
    return kc_random() & 1 ? 88.8f : -87.4f; // about where exp overflows and underflows
  default:
    return normal();
  }
}

void kc_fill_f32(float *x, size_t n, kc_fill fill) {
  for (size_t i = 0; i < n; i++)
    x[i] = fill == KC_FILL_NORMAL    ? normal()
           : fill == KC_FILL_WIDE    ? wide()
           : fill == KC_FILL_ZERO    ? (kc_random() & 1 ? 0.0f : -0.0f)
           : fill == KC_FILL_MAXIMUM ? (kc_random() & 1 ? FLT_MAX : -FLT_MAX)
                                     : special();
}
