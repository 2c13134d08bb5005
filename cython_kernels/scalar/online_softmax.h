// SPDX-License-Identifier: MIT
// The online softmax's step after a block of scores, in the order that scalar/attention.c states.
#ifndef BITNET_EDGE_SCALAR_ONLINE_SOFTMAX_H
#define BITNET_EDGE_SCALAR_ONLINE_SOFTMAX_H

#include "attention.h"
#include "scalar/exp.h"
#include "scalar/lanes.h"

typedef struct be_softmax {
  float max; // begins as -inf
  be_lanes sum;
} be_softmax;

// Turns the scores of a block's keys into weights and moves the head, its running output included,
// to the new maximum.
static inline void be_softmax_step(be_softmax *state, float s[BE_BLOCK_KEYS], be_keys keys,
                                   float *out, size_t head_dim) {
  float b = state->max;
  for (size_t j = keys.low; j < keys.high; j++)
    b = s[j] > b ? s[j] : b;
  if (b > state->max) {
    float c = be_exp(state->max - b);
    for (size_t i = 0; i < BE_LANES; i++)
      state->sum.lane[i] *= c;
    for (size_t d = 0; d < head_dim; d++)
      out[d] *= c;
    state->max = b;
  }
  for (size_t j = keys.low; j < keys.high; j++) {
    s[j] = be_exp(s[j] - state->max);
    state->sum.lane[j % BE_LANES] += s[j];
  }
}

#endif
