// SPDX-License-Identifier: MIT
// The items of one phase, shared out among the participants of a run.
//
//   participant t     items [total * t / n, total * (t + 1) / n)
//                     takes its own from the front ->          <- others steal from the back
//
// Ranges rather than one counter for all, because neighbouring items are neighbours in memory:
// each core reads one long stream, which is what its prefetching is made for. (Two cores that took
// 32 KB of weights in turn reached 60 % of the bandwidth that they reach this way.) Stealing lets
// cores of different speed, and a core that others use too, finish together.
#ifndef BITNET_EDGE_ENGINE_WORK_SHARE_H
#define BITNET_EDGE_ENGINE_WORK_SHARE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BE_WORK_LINE = 128 }; // what two cores must not both write: two lines on x86, one on Apple

// Items left of one participant's range: front in the lower half, back (exclusive) in the upper.
typedef struct be_work_range {
  _Alignas(BE_WORK_LINE) _Atomic uint64_t ends;
} be_work_range;

typedef struct be_work_share {
  _Alignas(BE_WORK_LINE) atomic_uint left; // participants that found nothing more to do
  be_work_range ranges[];                  // one per participant
} be_work_share;

static inline size_t be_work_share_bytes(uint32_t threads) {
  return sizeof(be_work_share) + threads * sizeof(be_work_range);
}

// The share inside a block of be_work_share_bytes and BE_WORK_LINE more.
static inline be_work_share *be_work_share_in(void *block) {
  return (be_work_share *)(((uintptr_t)block + BE_WORK_LINE - 1) / BE_WORK_LINE * BE_WORK_LINE);
}

// Nobody may be taking items: the caller is alone, or the last to have left.
static inline void be_work_begin(be_work_share *share, size_t total, unsigned n_threads) {
  atomic_store_explicit(&share->left, 0, memory_order_relaxed);
  for (unsigned t = 0; t < n_threads; t++) {
    uint64_t front = (uint64_t)total * t / n_threads, back = (uint64_t)total * (t + 1) / n_threads;
    atomic_store_explicit(&share->ranges[t].ends, back << 32 | front, memory_order_relaxed);
  }
}

static inline bool be_work_take_from(be_work_range *range, bool front, size_t *item) {
  uint64_t ends = atomic_load_explicit(&range->ends, memory_order_relaxed), rest;
  do {
    uint32_t first = (uint32_t)ends, end = (uint32_t)(ends >> 32);
    if (first == end)
      return false;
    *item = front ? first : end - 1;
    rest = front ? ends + 1 : ends - (UINT64_C(1) << 32);
  } while (!atomic_compare_exchange_weak_explicit(&range->ends, &ends, rest, memory_order_relaxed,
                                                  memory_order_relaxed));
  return true;
}

// The next item of `thread`: its own, or a stolen one. False when none is left anywhere.
static inline bool be_work_take(be_work_share *share, unsigned thread, unsigned n_threads,
                                size_t *item) {
  if (be_work_take_from(&share->ranges[thread], true, item))
    return true;
  for (unsigned i = 1; i < n_threads; i++)
    if (be_work_take_from(&share->ranges[(thread + i) % n_threads], false, item))
      return true;
  return false;
}

// Called once by each participant that has nothing more to do. True for the last: the items of all
// are done, and their results visible to it.
static inline bool be_work_leave(be_work_share *share, unsigned n_threads) {
  return atomic_fetch_add_explicit(&share->left, 1, memory_order_acq_rel) == n_threads - 1;
}

#endif
