// SPDX-License-Identifier: MIT
// Tests of thread_pool.c and cpu_available.c, one process per case: `test_thread_pool CASE`; built
// and run by test_engine_c.py.
//
// Linked with --wrap for the calls below, so that a case can make thread creation fail or put
// itself on a machine with other CPUs. BE_SYSTEM_ROOT is "root", a folder that may lie in the
// current directory.
#define _GNU_SOURCE
#include "thread_pool.h"

#include <errno.h>
#include <fenv.h>
#include <float.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                              \
      _exit(1);                                                                                    \
    }                                                                                              \
  } while (0)

enum { MOST = 8 }; // participants in most cases, on however few CPUs

// ---- The wrapped calls ------------------------------------------------------------------------

static atomic_int creations_left = -1; // then pthread_create fails; -1: never
static unsigned fake_cpus;             // in the affinity mask; 0: the real one
static int fake_cpu = -1;              // where every thread runs; -1: the truth
static pthread_mutex_t masks_lock = PTHREAD_MUTEX_INITIALIZER;
static cpu_set_t masks_set[64]; // what sched_setaffinity was asked for
static unsigned n_masks_set;

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument) {
  if (atomic_load(&creations_left) == 0)
    return EAGAIN;
  if (atomic_load(&creations_left) > 0)
    atomic_fetch_sub(&creations_left, 1);
  return __real_pthread_create(thread, attributes, start, argument);
}

int __real_sched_getaffinity(pid_t, size_t, cpu_set_t *);
int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *mask);
int __wrap_sched_getaffinity(pid_t pid, size_t size, cpu_set_t *mask) {
  if (fake_cpus == 0)
    return __real_sched_getaffinity(pid, size, mask);
  CPU_ZERO(mask);
  for (unsigned i = 0; i < fake_cpus; i++)
    CPU_SET(i, mask);
  return 0;
}

int __real_sched_setaffinity(pid_t, size_t, const cpu_set_t *);
int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *mask);
int __wrap_sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *mask) {
  if (fake_cpus == 0)
    return __real_sched_setaffinity(pid, size, mask);
  pthread_mutex_lock(&masks_lock);
  if (n_masks_set < 64)
    masks_set[n_masks_set++] = *mask;
  pthread_mutex_unlock(&masks_lock);
  return 0;
}

int __real_sched_getcpu(void);
int __wrap_sched_getcpu(void);
int __wrap_sched_getcpu(void) { return fake_cpu >= 0 ? fake_cpu : __real_sched_getcpu(); }

// ---- Jobs -------------------------------------------------------------------------------------

static void sleep_ms(long ms) {
  struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&pause, &pause) != 0)
    ;
}

// What one run did. Plain integers: the pool alone must make them visible, or TSan reports it.
typedef struct record {
  unsigned granted[MOST], runs[MOST];
  unsigned phase[MOST];
  unsigned rounds;
} record;

static void note(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  record *r = context;
  (void)barrier;
  CHECK(thread < n_threads && n_threads <= MOST);
  r->granted[thread] = n_threads;
  r->runs[thread]++;
}

static unsigned granted(unsigned n_threads) {
  record r = {0};
  be_pool_run(note, &r, n_threads);
  unsigned n = r.granted[0];
  for (unsigned i = 0; i < MOST; i++) {
    CHECK(r.runs[i] == (i < n ? 1 : 0));
    CHECK(r.granted[i] == (i < n ? n : 0));
  }
  return n;
}

static void storm(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  record *r = context;
  for (unsigned round = 1; round <= r->rounds; round++) {
    r->phase[thread] = round;
    be_barrier_wait(barrier);
    for (unsigned i = 0; i < n_threads; i++)
      CHECK(r->phase[i] == round);
    be_barrier_wait(barrier);
  }
}

// ---- Cases ------------------------------------------------------------------------------------

static void case_alone_before_reserve(void) {
  CHECK(be_pool_workers() == 0);
  CHECK(granted(4) == 1);
  CHECK(granted(1) == 1);
  CHECK(granted(0) == 1);
  record r = {.rounds = 100};
  be_pool_run(storm, &r, 4);
  CHECK(r.phase[0] == 100);
}

static void case_arguments(void) {
  CHECK(be_pool_reserve(0) == BE_ERR_ARGUMENT);
  CHECK(be_pool_reserve(BE_MAX_THREADS + 1) == BE_ERR_ARGUMENT);
  CHECK(be_pool_reserve(1) == BE_OK);
  CHECK(be_pool_workers() == 0);
}

static void case_every_participant_runs_once(void) {
  for (unsigned n = 1; n <= MOST; n++) {
    CHECK(be_pool_reserve(n) == BE_OK);
    CHECK(be_pool_workers() == n - 1);
    for (unsigned job = 0; job < 300; job++)
      CHECK(granted(n) == n);
    CHECK(granted(MOST) == n); // no more than were reserved
  }
  CHECK(be_pool_reserve(2) == BE_OK);
  CHECK(be_pool_workers() == MOST - 1); // never shrinks
  for (unsigned job = 0; job < 300; job++)
    CHECK(granted(1 + job % MOST) == 1 + job % MOST);
}

static void case_most_threads(void) {
  CHECK(be_pool_reserve(BE_MAX_THREADS) == BE_OK);
  CHECK(be_pool_workers() == BE_MAX_THREADS - 1);
  CHECK(granted(MOST) == MOST);
}

static void case_barrier_storm(void) {
  CHECK(be_pool_reserve(MOST) == BE_OK);
  for (unsigned n = 1; n <= MOST; n++) {
    record r = {.rounds = n <= 2 ? 20000 : 1000};
    be_pool_run(storm, &r, n);
    CHECK(r.phase[0] == r.rounds && r.phase[n - 1] == r.rounds);
  }
}

static void late(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  record *r = context;
  for (unsigned round = 0; round < 2 * n_threads; round++) {
    if (thread == round % n_threads)
      sleep_ms(2); // everyone else spins, parks, and must be woken
    r->phase[thread] = round;
    be_barrier_wait(barrier);
    for (unsigned i = 0; i < n_threads; i++)
      CHECK(r->phase[i] == round);
    be_barrier_wait(barrier);
  }
}

static void case_parked_participants_wake(void) {
  CHECK(be_pool_reserve(4) == BE_OK);
  for (unsigned n = 2; n <= 4; n++) {
    record r = {0};
    be_pool_run(late, &r, n);
  }
  for (unsigned job = 0; job < 50; job++) {
    sleep_ms(1); // parked between jobs
    CHECK(granted(2 + job % 3) == 2 + job % 3);
  }
}

static void *call_repeatedly(void *context) {
  unsigned *shared = context;
  for (unsigned job = 0; job < 400; job++) {
    unsigned n = granted(2 + job % 3);
    CHECK(n == 1 || n == 2 + job % 3);
    *shared += n > 1;
  }
  return NULL;
}

static void case_concurrent_callers(void) {
  CHECK(be_pool_reserve(4) == BE_OK);
  pthread_t callers[4];
  unsigned shared[4] = {0}, total = 0;
  for (unsigned i = 0; i < 4; i++)
    CHECK(pthread_create(&callers[i], NULL, call_repeatedly, &shared[i]) == 0);
  for (unsigned i = 0; i < 4; i++) {
    CHECK(pthread_join(callers[i], NULL) == 0);
    total += shared[i];
  }
  CHECK(total > 0);
}

static void *reserve_some(void *context) {
  const unsigned *n = context;
  CHECK(be_pool_reserve(*n) == BE_OK);
  CHECK(be_pool_workers() + 1 >= *n);
  for (unsigned job = 0; job < 50; job++)
    granted(*n);
  return NULL;
}

static void case_concurrent_reserves(void) {
  pthread_t callers[MOST];
  unsigned n[MOST];
  for (unsigned i = 0; i < MOST; i++) {
    n[i] = 1 + (i * 5) % MOST;
    CHECK(pthread_create(&callers[i], NULL, reserve_some, &n[i]) == 0);
  }
  for (unsigned i = 0; i < MOST; i++)
    CHECK(pthread_join(callers[i], NULL) == 0);
  CHECK(be_pool_workers() == MOST - 1);
}

static void grow_meanwhile(void *context, unsigned thread, unsigned n_threads,
                           be_barrier *barrier) {
  (void)context;
  if (thread == 0)
    CHECK(be_pool_reserve(MOST) == BE_OK); // the new workers stay out of this job
  be_barrier_wait(barrier);
  CHECK(n_threads == 3 && be_pool_workers() == MOST - 1);
}

static void case_grows_during_a_job(void) {
  CHECK(be_pool_reserve(3) == BE_OK);
  be_pool_run(grow_meanwhile, NULL, 3);
  CHECK(granted(MOST) == MOST);
}

static void outer(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  unsigned *inner = context;
  for (unsigned i = 0; i < 50; i++) {
    inner[thread] = granted(4);
    CHECK(n_threads == 4 && inner[thread] == 1);
    be_barrier_wait(barrier);
  }
}

static void case_nested_runs_alone(void) {
  CHECK(be_pool_reserve(4) == BE_OK);
  unsigned inner[4];
  be_pool_run(outer, inner, 4);
  CHECK(granted(4) == 4); // the nested ones have not given the pool away
}

static atomic_bool fork_done;

static void *work_until_done(void *context) {
  (void)context;
  while (!atomic_load(&fork_done)) {
    record r = {.rounds = 3};
    be_pool_run(storm, &r, 4);
    be_pool_reserve(4);
  }
  return NULL;
}

static void use_pool_in_child(void) {
  alarm(20);
  CHECK(be_pool_workers() == 0);
  CHECK(granted(4) == 1);
  CHECK(be_pool_reserve(3) == BE_OK);
  CHECK(be_pool_workers() == 2);
  record r = {.rounds = 20};
  for (unsigned job = 0; job < 20; job++) {
    CHECK(granted(4) == 3);
    be_pool_run(storm, &r, 3);
  }
  sleep_ms(1);
  CHECK(granted(2) == 2);
}

static void expect_success(pid_t child) {
  int status;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// The pool is in every state it can be in: another thread runs jobs on it without a pause.
static void case_fork(void) {
  CHECK(be_pool_reserve(4) == BE_OK);
  pthread_t other;
  CHECK(pthread_create(&other, NULL, work_until_done, NULL) == 0);
  for (unsigned i = 0; i < 25; i++) {
    pid_t child = fork();
    if (child == 0) {
      use_pool_in_child();
      pid_t grandchild = fork(); // and once more from a pool that was inherited and grown anew
      if (grandchild == 0) {
        use_pool_in_child();
        _exit(0);
      }
      expect_success(grandchild);
      _exit(0);
    }
    expect_success(child);
  }
  atomic_store(&fork_done, true);
  CHECK(pthread_join(other, NULL) == 0);
  CHECK(be_pool_workers() == 3 && granted(4) == 4); // the parent has noticed nothing
}

static void case_idle_pool_uses_no_cpu(void) {
  CHECK(be_pool_reserve(MOST) == BE_OK);
  for (unsigned job = 0; job < 100; job++)
    granted(MOST);
  sleep_ms(20);
  struct timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  sleep_ms(200);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  double ms = (double)(after.tv_sec - before.tv_sec) * 1e3 +
              (double)(after.tv_nsec - before.tv_nsec) * 1e-6;
  printf("idle for 200 ms: %.3f ms of CPU\n", ms);
  CHECK(ms < 10);
}

static void case_failed_reserve_leaves_the_pool(void) {
  for (int possible = 0; possible < 5; possible++) {
    atomic_store(&creations_left, possible);
    CHECK(be_pool_reserve(6) == BE_ERR_THREAD);
    CHECK(be_pool_workers() == 0 && granted(6) == 1);
  }
  atomic_store(&creations_left, -1);
  CHECK(be_pool_reserve(3) == BE_OK && granted(6) == 3);
  for (int possible = 0; possible < 3; possible++) {
    atomic_store(&creations_left, possible);
    CHECK(be_pool_reserve(6) == BE_ERR_THREAD);
    CHECK(be_pool_workers() == 2 && granted(6) == 3);
  }
  CHECK(be_pool_reserve(3) == BE_OK); // nothing to create
  atomic_store(&creations_left, -1);
  CHECK(be_pool_reserve(6) == BE_OK && granted(6) == 6);
}

static void look_at_thread(void *context, unsigned thread, unsigned n_threads,
                           be_barrier *barrier) {
  (void)context, (void)n_threads, (void)barrier;
  sigset_t blocked;
  CHECK(pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
  bool worker = thread > 0;
  CHECK(sigismember(&blocked, SIGINT) == worker && sigismember(&blocked, SIGTERM) == worker);
  CHECK(sigismember(&blocked, SIGSEGV) == 0 && sigismember(&blocked, SIGBUS) == 0);
  if (!worker)
    return;

  char name[16];
  CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "bitnet-edge") == 0);
  volatile char frame[160 * 1024]; // more than any kernel uses
  for (size_t i = 0; i < sizeof frame; i += 1024)
    frame[i] = 1;
#if !defined(BE_TEST_SANITIZED)
  pthread_attr_t attributes;
  size_t size;
  CHECK(pthread_getattr_np(pthread_self(), &attributes) == 0);
  CHECK(pthread_attr_getstacksize(&attributes, &size) == 0);
  CHECK(size >= 192 * 1024 && size <= 256 * 1024);
  pthread_attr_destroy(&attributes);
#endif
}

static void case_worker_threads(void) {
  sigset_t before, after;
  CHECK(pthread_sigmask(SIG_BLOCK, NULL, &before) == 0);
  CHECK(be_pool_reserve(4) == BE_OK);
  CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0);
  for (int signal = 1; signal < 32; signal++)
    CHECK(sigismember(&before, signal) == sigismember(&after, signal));
  be_pool_run(look_at_thread, NULL, 4);
}

static void count_modes(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier) {
  atomic_uint *usual = context;
  (void)thread, (void)n_threads, (void)barrier;
  volatile float one = 1, three = 3;
  float third = one / three;
  if (third == 0x1.555556p-2f) // downwards, the last digit would be 4
    atomic_fetch_add(usual, 1);
#if defined(__SSE__)
  volatile float small = FLT_MIN;
  float half = small * 0.5f;
  CHECK(half > 0); // a denormal, not flushed
#endif
}

static void case_float_mode(void) {
  CHECK(fesetround(FE_DOWNWARD) == 0); // inherited by the workers, too
#if defined(__SSE__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); // flush to zero, both ways
#endif
  CHECK(be_pool_reserve(3) == BE_OK);
  for (unsigned n = 1; n <= 3; n++) {
    atomic_uint usual = 0;
    be_pool_run(count_modes, &usual, n);
    CHECK(atomic_load(&usual) == n);
    CHECK(fegetround() == FE_DOWNWARD); // given back
#if defined(__SSE__)
    CHECK((__builtin_ia32_stmxcsr() & 0x8040) == 0x8040);
#endif
  }
}

// CPUs 0 to 7 of root/sys: the caller of this program says which are fast (2 to 5).
static void case_fast_cpus(void) {
  fake_cpus = 8;
  fake_cpu = 99; // beyond those that are told apart
  CHECK(be_pool_reserve(7) == BE_OK);
  CHECK(granted(7) == 7); // all have started
  CHECK(n_masks_set == 3);
  for (unsigned i = 0; i < n_masks_set; i++)
    for (int cpu = 0; cpu < 8; cpu++)
      CHECK(!!CPU_ISSET(cpu, &masks_set[i]) == (cpu >= 2 && cpu <= 5));
}

static void case_alike_cpus(void) {
  fake_cpus = 8;
  fake_cpu = 99; // beyond those that are told apart
  CHECK(be_pool_reserve(7) == BE_OK);
  CHECK(granted(7) == 7);
  CHECK(n_masks_set == 0);
}

// Every thread seems to begin on CPU 1: each worker must step aside, and be free again after.
static void case_leaves_a_taken_cpu(void) {
  fake_cpus = 4;
  fake_cpu = 1;
  CHECK(be_pool_reserve(3) == BE_OK);
  CHECK(granted(3) == 3);
  CHECK(n_masks_set == 4);
  unsigned kept = 0, avoiding = 0;
  for (unsigned i = 0; i < n_masks_set; i++) {
    kept += CPU_COUNT(&masks_set[i]) == 4;
    avoiding += CPU_COUNT(&masks_set[i]) == 3 && !CPU_ISSET(1, &masks_set[i]);
  }
  CHECK(kept == 2 && avoiding == 2);
}

static void case_stays_when_crowded(void) {
  fake_cpus = 2;
  fake_cpu = 1;
  CHECK(be_pool_reserve(4) == BE_OK);
  CHECK(granted(4) == 4);
  CHECK(n_masks_set == 0);
}

// Prints be_cpu_available() of a machine of 8 CPUs and of the files in root.
static void case_print_cpus(void) {
  fake_cpus = 8;
  printf("%u\n", be_cpu_available());
}

static void case_cpus_of_this_machine(void) {
  unsigned cpus = be_cpu_available();
  CHECK(cpus >= 1 && (long)cpus <= sysconf(_SC_NPROCESSORS_CONF));
  cpu_set_t first;
  CPU_ZERO(&first);
  CHECK(__real_sched_getaffinity(0, sizeof first, &first) == 0);
  for (int cpu = 0, found = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &first) && found++)
      CPU_CLR(cpu, &first);
  CHECK(__real_sched_setaffinity(0, sizeof first, &first) == 0);
  CHECK(be_cpu_available() == 1);
  CHECK(be_pool_reserve(3) == BE_OK); // three participants on one CPU
  record r = {.rounds = 500};
  be_pool_run(storm, &r, 3);
  CHECK(r.phase[2] == 500);
}

static unsigned random_below(unsigned *state, unsigned n) {
  *state = *state * 1664525u + 1013904223u;
  return (*state >> 8) % n;
}

static void *stress_caller(void *context) {
  unsigned state = *(unsigned *)context;
  for (unsigned i = 0; i < 300; i++) {
    unsigned n = 1 + random_below(&state, MOST);
    switch (random_below(&state, 8)) {
    case 0:
      CHECK(be_pool_reserve(n) == BE_OK);
      break;
    case 1:
      sleep_ms(1);
      break;
    case 2:
    case 3: {
      record r = {.rounds = random_below(&state, 30)};
      be_pool_run(storm, &r, n);
      break;
    }
    default:
      granted(n);
    }
  }
  return NULL;
}

static void case_stress(void) {
  pthread_t callers[3];
  unsigned seeds[3] = {1, 2, 3};
  for (unsigned i = 0; i < 3; i++)
    CHECK(pthread_create(&callers[i], NULL, stress_caller, &seeds[i]) == 0);
  for (unsigned i = 0; i < 3; i++)
    CHECK(pthread_join(callers[i], NULL) == 0);
}

#define CASE(name) {#name, case_##name}
static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    CASE(alone_before_reserve),
    CASE(arguments),
    CASE(every_participant_runs_once),
    CASE(most_threads),
    CASE(barrier_storm),
    CASE(parked_participants_wake),
    CASE(concurrent_callers),
    CASE(concurrent_reserves),
    CASE(grows_during_a_job),
    CASE(nested_runs_alone),
    CASE(fork),
    CASE(idle_pool_uses_no_cpu),
    CASE(failed_reserve_leaves_the_pool),
    CASE(worker_threads),
    CASE(float_mode),
    CASE(fast_cpus),
    CASE(alike_cpus),
    CASE(leaves_a_taken_cpu),
    CASE(stays_when_crowded),
    CASE(print_cpus),
    CASE(cpus_of_this_machine),
    CASE(stress),
};

int main(int argc, char **argv) {
  alarm(120); // a lost wake-up must not hang the suite
  for (size_t i = 0; argc == 2 && i < sizeof cases / sizeof cases[0]; i++)
    if (strcmp(argv[1], cases[i].name) == 0) {
      cases[i].run();
      return 0;
    }
  fprintf(stderr, "usage: %s CASE\n", argv[0]);
  return 2;
}
