// SPDX-License-Identifier: MIT
// Rings of timed events, one per thread (profile.h).
#define _GNU_SOURCE
#include "profile.h"

#include <stdlib.h>
#include <time.h>

#include "thread_pool.h"

typedef struct ring {
  uint64_t count; // ever written; event n is at n % capacity
  be_profile_event *events;
  uint8_t padding[112]; // threads write side by side: no two rings share a cache line
} ring;

struct be_profile {
  uint32_t threads, capacity;
  uint64_t runs, run_ns;
  be_profile_event *events; // of all rings
  ring rings[BE_MAX_THREADS];
};

be_status be_profile_create(be_profile **out, uint32_t threads, uint32_t capacity) {
  *out = NULL;
  if (threads < 1 || threads > BE_MAX_THREADS || capacity > BE_MAX_PROFILE_EVENTS)
    return BE_ERR_ARGUMENT;
  be_profile *profile = calloc(1, sizeof *profile);
  if (!profile)
    return BE_ERR_NO_MEMORY;
  profile->threads = threads;
  profile->capacity = capacity;
  if (capacity > 0) {
    profile->events = calloc((size_t)threads * capacity, sizeof *profile->events);
    if (!profile->events) {
      be_profile_destroy(profile);
      return BE_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < threads; i++)
      profile->rings[i].events = profile->events + (size_t)i * capacity;
  }
  *out = profile;
  return BE_OK;
}

void be_profile_destroy(be_profile *profile) {
  if (!profile)
    return;
  free(profile->events);
  free(profile);
}

void be_profile_clear(be_profile *profile) {
  profile->runs = profile->run_ns = 0;
  for (uint32_t i = 0; i < profile->threads; i++)
    profile->rings[i].count = 0;
}

uint32_t be_profile_threads(const be_profile *profile) { return profile->threads; }
uint64_t be_profile_runs(const be_profile *profile) { return profile->runs; }
uint64_t be_profile_run_ns(const be_profile *profile) { return profile->run_ns; }

uint64_t be_profile_count(const be_profile *profile, uint32_t thread) {
  return thread < profile->threads ? profile->rings[thread].count : 0;
}

size_t be_profile_read(const be_profile *profile, uint32_t thread, be_profile_event *events,
                       size_t max) {
  uint64_t count = be_profile_count(profile, thread), left = count;
  if (left > profile->capacity)
    left = profile->capacity;
  if (left > max)
    left = max;
  for (uint64_t i = 0; i < left; i++)
    events[i] = profile->rings[thread].events[(count - left + i) % profile->capacity];
  return (size_t)left;
}

uint64_t be_profile_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void be_profile_add(be_profile *profile, unsigned thread, uint32_t instruction, uint64_t begin_ns) {
  ring *r = &profile->rings[thread];
  if (profile->capacity > 0)
    r->events[r->count % profile->capacity] =
        (be_profile_event){begin_ns, be_profile_now(), instruction, 0};
  r->count++;
}

void be_profile_add_run(be_profile *profile, uint64_t begin_ns) {
  profile->runs++;
  profile->run_ns += be_profile_now() - begin_ns;
}
