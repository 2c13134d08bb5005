// SPDX-License-Identifier: MIT
// Many phases of work over a few threads: every item is taken once, one participant is the last to
// leave and sees what all have written. Run under the thread sanitizer too.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/work_share.h"

enum { THREADS = 4, PHASES = 2000, MAX_ITEMS = 97 };

static be_work_share *share;
static pthread_barrier_t barrier;
static int taken[MAX_ITEMS]; // plain: the sanitizer must see an order between its writers
static size_t total;
static int failures, lasts;

static void begin(unsigned phase) {
  total = phase * 31 % (MAX_ITEMS + 1);
  be_work_begin(share, total, THREADS);
}

// What the last to leave does alone, before the barrier.
static void check_and_begin(unsigned phase) {
  lasts++;
  for (size_t i = 0; i < total; i++) {
    failures += taken[i] != 1;
    taken[i] = 0;
  }
  begin(phase + 1);
}

static void *participate(void *argument) {
  unsigned thread = (unsigned)(size_t)argument;
  for (unsigned phase = 0; phase < PHASES; phase++) {
    size_t item;
    while (be_work_take(share, thread, THREADS, &item)) {
      taken[item]++;
      for (volatile int slow = 0; thread == 1 && slow < 500;) // the others must steal
        slow = slow + 1;
    }
    if (be_work_leave(share, THREADS))
      check_and_begin(phase);
    pthread_barrier_wait(&barrier);
  }
  return NULL;
}

int main(void) {
  void *block = calloc(1, be_work_share_bytes(THREADS) + BE_WORK_LINE);
  share = be_work_share_in(block);
  pthread_barrier_init(&barrier, NULL, THREADS);
  begin(0);
  pthread_t threads[THREADS];
  for (size_t t = 0; t < THREADS; t++)
    if (pthread_create(&threads[t], NULL, participate, (void *)t) != 0)
      return 2;
  for (size_t t = 0; t < THREADS; t++)
    pthread_join(threads[t], NULL);
  free(block);
  printf("%d failures, %d last ones in %d phases\n", failures, lasts, PHASES);
  return failures != 0 || lasts != PHASES;
}
