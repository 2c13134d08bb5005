// SPDX-License-Identifier: MIT
// The arithmetic of exact screening (head_screen.h has the derivation).
#include "head_screen.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "bitnet_edge.h"
#include "head_layout.h"

enum { BLOCK = 256, LANES = 16 };

#define UNIT 0x1p-24           // half the distance from 1 to the next float32
#define ENLARGED (1 + 0x1p-20) // more than float64, its rounding and the sum of e lose

static double rounding_bound(double n) { return n * UNIT / (1 - n * UNIT); }

be_screen_limits be_screen_errors(const float *x, const int16_t *q, float s, size_t k,
                                  uint32_t bits) {
  int64_t squares = 0; // <= 2^17 * 2^30
  double difference = 0, step = 1 / (double)s;
  for (size_t i = 0; i < k; i++) {
    squares += (int32_t)q[i] * q[i];
    double d = (double)x[i] - q[i] * step;
    difference += d * d;
  }
  double rounded = sqrt((double)squares) * step;
  double moved = sqrt(difference) + 0x1p-48 * rounded; // d itself is rounded, as is `step`
  double exact_sum = rounding_bound((double)(k / 16 + 6));
  double estimate = rounding_bound(bits == 8 ? 4 : (double)(k / BE_I4_GROUP_K + 4));
  double norm = moved + exact_sum * (rounded + moved) + estimate * rounded;
  return (be_screen_limits){
      .threshold = -INFINITY,
      .residual = (float)((1 + estimate) * rounded * ENLARGED),
      .norm = (float)(norm * ENLARGED),
      .slack = (float)(2 * k + 64) * 0x1p-125f,
  };
}

// ---- The largest: a heap with the least of them, the highest id among equals, on top ------------

static bool below(const float *y, uint32_t a, uint32_t b) {
  return y[a] < y[b] || (y[a] == y[b] && a > b);
}

static void sink(uint32_t *heap, size_t n, const float *y, size_t at) {
  for (;;) {
    size_t least = at;
    for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < n; child++)
      if (below(y, heap[child], heap[least]))
        least = child;
    if (least == at)
      return;
    uint32_t id = heap[at];
    heap[at] = heap[least];
    heap[least] = id;
    at = least;
  }
}

static float largest_of(const float *y, size_t n) {
  float lane[LANES], largest = -INFINITY;
  for (int j = 0; j < LANES; j++)
    lane[j] = -INFINITY;
  size_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++)
      lane[j] = y[i + j] > lane[j] ? y[i + j] : lane[j]; // NaN compares false
  for (; i < n; i++)
    largest = y[i] > largest ? y[i] : largest;
  for (int j = 0; j < LANES; j++)
    largest = lane[j] > largest ? lane[j] : largest;
  return largest;
}

size_t be_screen_largest(uint32_t *ids, size_t best, const float *y, size_t rows) {
  size_t n = 0, row = 0;
  for (; row < rows && n < best; row++)
    if (y[row] == y[row])
      ids[n++] = (uint32_t)row;
  if (n < best)
    return n;
  for (size_t at = n / 2; at-- > 0;)
    sink(ids, n, y, at);
  while (row < rows) {
    size_t count = rows - row < BLOCK ? rows - row : BLOCK;
    if (largest_of(y + row, count) > y[ids[0]])
      for (size_t i = row; i < row + count; i++)
        if (y[i] > y[ids[0]]) {
          ids[0] = (uint32_t)i;
          sink(ids, n, y, 0);
        }
    row += count;
  }
  return n;
}

void be_screen_keep(uint8_t *keep, const float *y, const float *residuals, const float *norms,
                    size_t count, const be_screen_limits *limits) {
  const float t = limits->threshold, p = limits->residual, q = limits->norm, s = limits->slack;
  for (size_t i = 0; i < count; i++) {
    float bound = y[i] + ((residuals[i] * p + norms[i] * q) + s);
    float magnitude = y[i] < 0 ? -y[i] : y[i];
    keep[i] = !(bound < t) | !(magnitude <= FLT_MAX);
  }
}
