// SPDX-License-Identifier: MIT
// What an attention kernel is asked for: some tokens' query heads that share one key/value head,
// over segments of that head's cache.
//
// A segment is a run of cache rows that hold consecutive positions. A whole cache is one segment; a
// ring with attention sinks is up to three: the sinks, and the two ends of the ring. A token sees,
// of each segment, the positions up to its own and no older than its window:
//
//   max(first, p + 1 - window) <= position < min(end, p + 1)         p: the token's position
//
// The softmax advances by blocks: the positions 64 b .. 64 b + 63 that lie in one segment and that
// the token sees, segments in their order. So a result depends on where segments begin and end,
// unless that is at a multiple of 64, and on nothing else: not on the tokens of the call, nor on
// the slots in which the rows lie.
#ifndef BITNET_EDGE_ATTENTION_H
#define BITNET_EDGE_ATTENTION_H

#include <stddef.h>

enum { BE_BLOCK_KEYS = 64 };

typedef struct be_kv_segment {
  const void *k, *v;               // the rows of position `first`
  const void *k_scales, *v_scales; // theirs, where rows are codes
  size_t first, end;               // positions
  size_t window;                   // positions a token sees, its own included; SIZE_MAX: all
  const float *q;                  // [n_tokens][n_heads][head_dim], rotated to suit these keys
} be_kv_segment;

typedef struct be_attention {
  float *out;    // [n_tokens][n_heads][head_dim]
  size_t stride; // floats from one token to the next, in q and out
  size_t n_tokens, n_heads, head_dim;
  size_t position; // of the first token
  float scale;
  const be_kv_segment *segments;
  size_t n_segments;
} be_attention;

// Keys of one block: positions counted from the block's first. Empty where low >= high.
typedef struct be_keys {
  size_t low, high;
} be_keys;

// What a token at `position` sees of the segment's block that begins at position `block`.
static inline be_keys be_keys_seen(const be_kv_segment *segment, size_t position, size_t block) {
  size_t low = segment->first, high = segment->end;
  if (high > position + 1)
    high = position + 1;
  if (position + 1 > segment->window && low < position + 1 - segment->window)
    low = position + 1 - segment->window;
  if (low < block)
    low = block;
  if (high > block + BE_BLOCK_KEYS)
    high = block + BE_BLOCK_KEYS;
  return low < high ? (be_keys){low - block, high - block} : (be_keys){0, 0};
}

#endif
