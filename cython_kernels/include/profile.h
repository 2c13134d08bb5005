// SPDX-License-Identifier: MIT
// Where the time of a session's runs goes: which instruction, on which thread, from when to when.
//
// A session writes into the profile it was given (be_session_profile) and into nothing when it was
// given none: one predictable branch per work item. Each thread has a ring of its own, so that
// recording takes no lock; the oldest events are overwritten. Read it between runs.
#ifndef BITNET_EDGE_PROFILE_H
#define BITNET_EDGE_PROFILE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum { BE_MAX_PROFILE_EVENTS = 1 << 24 }; // per thread: 384 MB of them

// One thread's uninterrupted share of one instruction, on the monotonic clock.
typedef struct be_profile_event {
  uint64_t begin_ns, end_ns;
  uint32_t instruction;
  uint32_t reserved; // zero
} be_profile_event;

typedef struct be_profile be_profile;

// Room for the last `capacity` events of each of `threads` participants; 0 events: totals only.
be_status be_profile_create(be_profile **out, uint32_t threads, uint32_t capacity);
void be_profile_destroy(be_profile *profile);
void be_profile_clear(be_profile *profile);

uint32_t be_profile_threads(const be_profile *profile);
uint64_t be_profile_runs(const be_profile *profile);   // since the last clear
uint64_t be_profile_run_ns(const be_profile *profile); // inside be_session_run, all runs together

// Events a thread recorded since the last clear, the overwritten ones included.
uint64_t be_profile_count(const be_profile *profile, uint32_t thread);
// Copies what is left of them, oldest first, `max` at most; returns how many.
size_t be_profile_read(const be_profile *profile, uint32_t thread, be_profile_event *events,
                       size_t max);

// For the engine.
uint64_t be_profile_now(void);
void be_profile_add(be_profile *profile, unsigned thread, uint32_t instruction, uint64_t begin_ns);
void be_profile_add_run(be_profile *profile, uint64_t begin_ns);

#endif
