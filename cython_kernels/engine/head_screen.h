// SPDX-License-Identifier: MIT
// Exact screening: the largest logits of a head, from a quantised pass over all rows and the exact
// product of the few whose error bound could still win.
//
// The exact logit of a row is z, the float32 sum of dense_gemv; the estimate is y, what head_gemv
// gives for codes that stand for the row. A row is left out only when y + e < t, where e bounds
// |z - y| and t is at most the `best`-th largest z. So every row among the `best` largest is kept,
// and so is every row whose z equals one of theirs: choosing the first of equals goes on as ever.
//
// The bound. With w the row, v its codes times their scales, x the activations, q / s what
// quantize_i16 made of them (all as real numbers), |.| the Euclidean norm:
//
//   w.x - v.(q/s) = (w - v).(q/s) + w.(x - q/s)          |.| <= |w - v| |q/s| + |w| |x - q/s|
//   z rounds products and sums in 16 lanes and a tree    |z - w.x| <= g(k/16 + 6) |w| |x|
//   y int8: an exact sum, three roundings; int4: a sum   |y - v.(q/s)| <= g(n) |v| |q/s|,
//     of k/32 rounded products, divided                    n = 4, or k/32 + 4
//   products and sums below 2^-126 may lose all digits   <= (2k + 64) 2^-126
//
// where g(n) = n u / (1 - n u), u = 2^-24, is the usual bound of n roundings (Higham, "Accuracy and
// Stability of Numerical Algorithms", lemma 3.1, with Cauchy and Schwarz for the sum of
// magnitudes). With |v| <= |w| + |w - v| and |x| <= |q/s| + |x - q/s| this is
//
//   e = |w - v| P + |w| Q + slack
//   P = (1 + g(n)) |q/s|,   Q = |x - q/s| + g(k/16 + 6) (|q/s| + |x - q/s|) + g(n) |q/s|
//
// The file holds |w - v| and |w| of each row, rounded up (head_screen.py); P and Q are of the
// token. They are computed in float64 and made larger by 2^-20, which is more than that arithmetic,
// their rounding to float32 and the three roundings of e can lose. Rounding to nearest keeps order,
// so y + e < t in float32 implies it in the reals. An estimate that is not finite, and a bound that
// is NaN, leave nothing out. Hostile bounds give wrong logits and nothing worse: no index depends
// on them but through the comparison.
//
// The threshold t: the `best` rows of largest estimate, computed exactly; the least of these is at
// most the `best`-th largest of all.
#ifndef BITNET_EDGE_ENGINE_HEAD_SCREEN_H
#define BITNET_EDGE_ENGINE_HEAD_SCREEN_H

#include <stddef.h>
#include <stdint.h>

// Of one token, as they lie in the arena.
typedef struct be_screen_limits {
  float threshold; // t
  float residual;  // P
  float norm;      // Q
  float slack;
} be_screen_limits;

// P, Q and slack of a token; the threshold is -inf. `bits` are those of the codes.
be_screen_limits be_screen_errors(const float *x, const int16_t *q, float s, size_t k,
                                  uint32_t bits);

// The ids of the `best` largest of y, at most BE_MAX_BEST, lower ids first among equals; NaN is
// passed over. Returns how many there are. They are in no order.
size_t be_screen_largest(uint32_t *ids, size_t best, const float *y, size_t rows);

// Which of `count` estimates may belong to the largest: keep[i] is 0 or 1.
void be_screen_keep(uint8_t *keep, const float *y, const float *residuals, const float *norms,
                    size_t count, const be_screen_limits *limits);

#endif
