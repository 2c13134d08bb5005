// SPDX-License-Identifier: MIT
// Token sampling, equal on every ISA: scalar code, our exp, our generator, no libm, and sums of
// integers, which have no order.
//
// With l the logits after the repetition penalty and m the largest, in float32:
//   distance  d = (m - l) / temperature
//   weight    W = floor(exp(-d) * 2^39), 0 for d >= 28: what the token counts in every sum
//   order     smaller d first, then lower token id
//   top_k     keeps the first k in that order
//   top_p     keeps a token while the sum of W before it < top_p * (sum over all left by top_k):
//             the smallest set that reaches top_p, at least one token
//   min_p     of these, keeps exp(-d) >= min_p: relative to the most probable token
//   draw      r = floor(x * (sum over the kept) / 2^64), x the next 64 bits of xoshiro256** (seeded
//             by splitmix64); the token is the first in order at which the running sum of W > r
// Where logits are +inf, they have d = 0 and all others W = 0. Greedy takes the largest l, the
// lowest id among equals, and no random number; otherwise each successful call takes one.
// Time is linear in the vocabulary for any logits.
#ifndef BITNET_EDGE_SAMPLER_H
#define BITNET_EDGE_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

// Filters apply in the order of transformers' generate: repetition penalty, temperature, top_k,
// top_p, min_p. (There, tokens that tie with the k-th all stay; here, k tokens do.)
typedef struct be_sampling {
  float temperature;        // 0 (or denormal) = greedy
  uint32_t top_k;           // 0 = off
  float top_p;              // 1 = off; in (0, 1]
  float min_p;              // 0 = off; in [0, 1)
  float repetition_penalty; // 1 = off; > 0: logit / p if positive, logit * p if negative
} be_sampling;

typedef struct be_sampler be_sampler; // scratch for one vocabulary, and the generator's state

be_status be_sampler_create(be_sampler **out, uint32_t vocab_size, uint64_t seed);
void be_sampler_destroy(be_sampler *sampler);
size_t be_sampler_bytes(const be_sampler *sampler); // private memory it holds

// Picks a token. `recent` (n_recent ids, duplicates allowed, each in [0, vocab)) are the tokens
// the repetition penalty applies to. `logits` (vocab_size) is read only. NaN logits are never
// chosen; if all are NaN or -inf, the result is BE_ERR_OUT_OF_RANGE. A parameter or recent id
// outside its range is BE_ERR_ARGUMENT. After an error, *token and the generator are as before.
be_status be_sampler_next(be_sampler *sampler, const be_sampling *parameters, const float *logits,
                          const int32_t *recent, size_t n_recent, int32_t *token);

// What of the logits a draw depends on, in the terms of be_session_screen: the `best` largest,
// those that equal one of them and those less than `margin` below the last; or all of them, *best =
// 0.
//
// Greedy wants the largest; top_k wants k. A penalty of p >= 1 only lowers: of the n_recent ids it
// applies to, those that stay among the largest were so before, and as many others may take the
// place of the rest, so that k + n_recent are enough. With p < 1 any id can rise. Distances are
// rounded: logits that differ can be equally far from the largest, and the lower id then counts
// first. Two of at most 28 that round to equal differ by less than 28 * 4 * 2^-24 (1 + 2^-20), so
// their logits by less than margin = temperature * 2^-17.
void be_sampler_needs(const be_sampling *parameters, size_t n_recent, uint32_t *best,
                      float *margin);

#endif
