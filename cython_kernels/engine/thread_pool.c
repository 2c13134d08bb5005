// SPDX-License-Identifier: MIT
// The process's pool of worker threads (thread_pool.h).
//
//   be_pool_run     take the pool | post the job to workers 1 .. n-1 | run as 0 | wait for all
//   worker_main     wait for a post | run | arrive at the job's last barrier, not waiting | again
//
// All waiting goes through one primitive, the event below; the barrier is a count of arrivals and
// an event that the last arrival advances. Nothing is allocated, and no thread ever waits for a
// lock to run a job: a caller that finds the pool taken (by another caller, or by the very job it
// is part of) does the work alone.
//
// fork(): the child has no workers, and locks may be frozen in any state. The child handler stores
// to a few atomics and touches nothing else; every event is made anew before the child uses it.
// A job that forks has lost its other participants in the child: it passes its barriers there, but
// what they would have computed is missing.
#define _GNU_SOURCE
#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#if !defined(_WIN32) && !defined(__wasi__)
#include <signal.h>
#endif
#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// Prepended to /sys paths; the tests put a made-up machine here.
#ifndef BE_SYSTEM_ROOT
#define BE_SYSTEM_ROOT ""
#endif

// Linux (Android included) parks on the counter itself; elsewhere, or when a test asks for it, a
// mutex and a condition variable do the same.
#ifndef BE_PORTABLE_PARKING
#if defined(__linux__) && defined(SYS_futex)
#define BE_PORTABLE_PARKING 0
#else
#define BE_PORTABLE_PARKING 1
#endif
#endif

// Sanitizers enlarge frames, and their thread-local data lives on the stack as well.
#if defined(__has_feature)
#define BE_HAS_FEATURE(name) __has_feature(name)
#else
#define BE_HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) ||                               \
    BE_HAS_FEATURE(thread_sanitizer) || BE_HAS_FEATURE(address_sanitizer)
enum { STACK_BYTES = 2 * 1024 * 1024 };
#else
enum { STACK_BYTES = 256 * 1024 }; // kernels use up to 64 KiB; only touched pages are memory
#endif

enum {
  SPIN_NS = 50 * 1000,  // longer than most waits inside a token, shorter than a person notices
  POLLS_PER_CLOCK = 64, // polls between two readings of the clock
  LINE = 128            // what two cores must not both write: two lines on x86, one on Apple
};

// ---- Waiting ----------------------------------------------------------------------------------

// A counter to wait on. Sleepers announce themselves before they look at the counter once more,
// and whoever advances it looks for sleepers after that (both sequentially consistent): at least
// one of the two sees the other, so no wake-up is lost, and none is paid for when all spin.
typedef struct event {
  atomic_uint value;
  atomic_uint sleepers;
#if BE_PORTABLE_PARKING
  pthread_mutex_t mutex;
  pthread_cond_t advanced;
#endif
} event;

static bool event_init(event *e) {
  atomic_store_explicit(&e->value, 0, memory_order_relaxed);
  atomic_store_explicit(&e->sleepers, 0, memory_order_relaxed);
#if BE_PORTABLE_PARKING
  if (pthread_mutex_init(&e->mutex, NULL) != 0)
    return false;
  if (pthread_cond_init(&e->advanced, NULL) != 0) {
    pthread_mutex_destroy(&e->mutex);
    return false;
  }
#endif
  return true;
}

static void event_destroy(event *e) {
#if BE_PORTABLE_PARKING
  pthread_cond_destroy(&e->advanced);
  pthread_mutex_destroy(&e->mutex);
#else
  (void)e;
#endif
}

static void event_park(event *e, unsigned seen) {
  atomic_fetch_add(&e->sleepers, 1);
#if BE_PORTABLE_PARKING
  pthread_mutex_lock(&e->mutex);
  while (atomic_load(&e->value) == seen)
    pthread_cond_wait(&e->advanced, &e->mutex);
  pthread_mutex_unlock(&e->mutex);
#else
  // Returns at once when the counter is no longer `seen`; signals and strays just go round again.
  while (atomic_load(&e->value) == seen)
    syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
#endif
  atomic_fetch_sub_explicit(&e->sleepers, 1, memory_order_relaxed);
}

static void event_advance(event *e) {
  atomic_fetch_add(&e->value, 1);
  if (atomic_load(&e->sleepers) == 0)
    return;
#if BE_PORTABLE_PARKING
  pthread_mutex_lock(&e->mutex); // a sleeper is before its look at the counter, or asleep
  pthread_cond_broadcast(&e->advanced);
  pthread_mutex_unlock(&e->mutex);
#else
  syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
}

static int64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// Tells the core that this is a polling loop. On arm64 `yield` does nothing on most cores; `isb`
// holds the thread for some tens of cycles, as `pause` does.
static inline void poll_pause(void) {
#if defined(__SSE__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#elif defined(__arm__) && __ARM_ARCH >= 7
  __asm__ volatile("yield" ::: "memory");
#endif
}

// Returns the counter once it differs from `seen`. A wait that ends soon never reads the clock.
static unsigned event_wait(event *e, unsigned seen, bool spin) {
  int64_t deadline = 0;
  while (spin) {
    for (int i = 0; i < POLLS_PER_CLOCK; ++i) {
      unsigned value = atomic_load_explicit(&e->value, memory_order_acquire);
      if (value != seen)
        return value;
      poll_pause();
    }
    int64_t now = monotonic_ns();
    if (deadline == 0)
      deadline = now + SPIN_NS;
    spin = now < deadline;
  }
  event_park(e, seen);
  return atomic_load_explicit(&e->value, memory_order_acquire);
}

struct be_barrier {
  _Alignas(LINE) atomic_uint arrived;
  _Alignas(LINE) event passed; // advanced by the last to arrive
  unsigned n_threads;
  bool spin; // every participant has a CPU
};

// The last participant lets the others go; true for that one. Whoever is not the last at a job's
// end must not look at the barrier again: it may serve the next job already.
static bool barrier_arrive(be_barrier *barrier) {
  unsigned n_threads = barrier->n_threads;
  unsigned before = atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel);
  if (before + 1 != n_threads)
    return false;
  atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
  event_advance(&barrier->passed);
  return true;
}

void be_barrier_wait(be_barrier *barrier) {
  if (barrier->n_threads == 1)
    return;
  // Cannot advance before this thread has arrived.
  unsigned seen = atomic_load_explicit(&barrier->passed.value, memory_order_relaxed);
  if (!barrier_arrive(barrier))
    event_wait(&barrier->passed, seen, barrier->spin);
}

// ---- The pool ---------------------------------------------------------------------------------

typedef struct worker {
  _Alignas(LINE) event posted; // advanced once per job
  pthread_t thread;
  unsigned index; // participant number, >= 1
  bool quit;
} worker;

static struct {
  atomic_bool growing; // be_pool_reserve is at work
  atomic_bool busy;    // a job is running
  atomic_uint n_workers;
  atomic_uint cpus;
  atomic_uint cpus_taken; // bit per CPU (of the first 32) on which a participant began the job

  // Written before the first worker starts.
  bool ready;
#if defined(__linux__)
  cpu_set_t fast_cpus;
  unsigned n_fast_cpus; // 0: all are alike, or unknown
#endif

  // Written by the caller that holds `busy`, before it posts.
  be_job *job;
  void *context;
  be_barrier barrier;

  worker workers[BE_MAX_THREADS - 1];
} pool;

static pthread_once_t fork_handler_once = PTHREAD_ONCE_INIT;
static bool fork_handler_set;

// ---- What differs between systems -------------------------------------------------------------

#if defined(_WIN32) || defined(__wasi__)
static void set_fork_handler(void) { fork_handler_set = true; }
#else
static void after_fork_in_child(void) {
  atomic_store(&pool.n_workers, 0);
  atomic_store(&pool.busy, false);
  atomic_store(&pool.growing, false);
  pool.ready = false;
  pool.barrier.n_threads = 1; // a job that forked and goes on in the child waits for nobody
}

static void set_fork_handler(void) {
  fork_handler_set = pthread_atfork(NULL, NULL, after_fork_in_child) == 0;
}
#endif

// Signals belong to the application's threads (an interpreter's Ctrl-C handler, say), all but
// those that a fault raises in the very thread: blocked, they would kill without a trace.
#if defined(_WIN32) || defined(__wasi__)
typedef int signal_mask;
static void block_signals(signal_mask *saved) { *saved = 0; }
static void restore_signals(const signal_mask *saved) { (void)saved; }
#else
typedef sigset_t signal_mask;
static void block_signals(signal_mask *saved) {
  static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
  sigset_t mask;
  sigfillset(&mask);
  for (size_t i = 0; i < sizeof faults / sizeof faults[0]; ++i)
    sigdelset(&mask, faults[i]);
  pthread_sigmask(SIG_SETMASK, &mask, saved);
}
static void restore_signals(const signal_mask *saved) { pthread_sigmask(SIG_SETMASK, saved, NULL); }
#endif

#if defined(__linux__)
// The CPUs of at least half the capacity of the best one this thread may use: the big and middle
// cores of a phone, without its little ones. The kernel tells capacities only where they differ.
static void find_fast_cpus(void) {
  pool.n_fast_cpus = 0;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return;
  unsigned capacity[BE_MAX_THREADS] = {0}, best = 0;
  for (int cpu = 0; cpu < BE_MAX_THREADS; ++cpu) {
    char path[sizeof BE_SYSTEM_ROOT + 64];
    snprintf(path, sizeof path, BE_SYSTEM_ROOT "/sys/devices/system/cpu/cpu%d/cpu_capacity", cpu);
    FILE *file = CPU_ISSET(cpu, &allowed) ? fopen(path, "re") : NULL;
    if (!file)
      continue;
    if (fscanf(file, "%u", &capacity[cpu]) == 1 && capacity[cpu] > best)
      best = capacity[cpu];
    fclose(file);
  }
  CPU_ZERO(&pool.fast_cpus);
  for (int cpu = 0; cpu < BE_MAX_THREADS; ++cpu)
    if (capacity[cpu] > 0 && capacity[cpu] >= best - best / 2)
      CPU_SET(cpu, &pool.fast_cpus);
  if (CPU_COUNT(&pool.fast_cpus) < CPU_COUNT(&allowed))
    pool.n_fast_cpus = (unsigned)CPU_COUNT(&pool.fast_cpus);
}

// Participants that fit on the fast CPUs stay on them, on any of them; the others, and the
// caller's thread, are left to the scheduler. Work is shared out by stealing, so a slow
// participant costs little.
static void set_up_this_worker(unsigned index) {
  prctl(PR_SET_NAME, "bitnet-edge");
  if (index < pool.n_fast_cpus)
    sched_setaffinity(0, sizeof pool.fast_cpus, &pool.fast_cpus); // a wish: failing is no harm
}
static unsigned this_cpu(void) {
  int cpu = sched_getcpu();
  return cpu >= 0 && cpu < 32 ? 1u << cpu : 0;
}

static void claim_first_cpu(void) {
  atomic_store_explicit(&pool.cpus_taken, this_cpu(), memory_order_relaxed);
}

// Leaves a CPU on which another participant runs already. Linux wakes a thread on the waker's CPU
// when it takes no other for idle (halted CPUs of a virtual machine look busy), and may leave both
// there for milliseconds, a whole token: measured, 13 times slower in short phases.
static void claim_cpu(void) {
  unsigned mine = this_cpu();
  unsigned taken = atomic_fetch_or_explicit(&pool.cpus_taken, mine, memory_order_relaxed);
  cpu_set_t allowed, others;
  if (!(taken & mine) || sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return;
  others = allowed;
  for (int cpu = 0; cpu < 32; ++cpu)
    if (taken >> cpu & 1)
      CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0)
    return; // the call returns on one of the others
  atomic_fetch_or_explicit(&pool.cpus_taken, this_cpu(), memory_order_relaxed);
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
static void find_fast_cpus(void) {}
static void claim_first_cpu(void) {}
static void claim_cpu(void) {}
static void set_up_this_worker(unsigned index) {
  (void)index;
#if defined(__APPLE__)
  pthread_setname_np("bitnet-edge");
#endif
}
#endif

static void set_attributes(pthread_attr_t *attributes) {
  // Refused only where the thread-local storage of the process is larger still: the default then.
  (void)pthread_attr_setstacksize(attributes, STACK_BYTES);
#if defined(__APPLE__)
  pthread_attr_set_qos_class_np(attributes, QOS_CLASS_USER_INITIATED, 0);
#endif
}

static void sleep_briefly(void) {
  struct timespec pause = {0, 100 * 1000};
  nanosleep(&pause, NULL);
}

// Rounding to nearest, denormals kept. A thread inherits these from the one that started it, and
// libraries built with -ffast-math change them: without this, the last bit of a result would
// depend on which thread computed it.
#if defined(__SSE__)
typedef unsigned float_mode;
static float_mode enter_default_float_mode(void) {
  unsigned saved = _mm_getcsr();
  _mm_setcsr(0x1F80);
  return saved;
}
static void restore_float_mode(float_mode saved) { _mm_setcsr(saved); }
#elif defined(__aarch64__)
typedef uint64_t float_mode;
static float_mode enter_default_float_mode(void) {
  uint64_t saved;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
  __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
  return saved;
}
static void restore_float_mode(float_mode saved) { __asm__ volatile("msr fpcr, %0" ::"r"(saved)); }
#elif defined(__arm__) && defined(__ARM_FP)
typedef uint32_t float_mode;
static float_mode enter_default_float_mode(void) {
  uint32_t saved;
  __asm__ volatile("vmrs %0, fpscr" : "=r"(saved));
  __asm__ volatile("vmsr fpscr, %0" ::"r"(0));
  return saved;
}
static void restore_float_mode(float_mode saved) {
  __asm__ volatile("vmsr fpscr, %0" ::"r"(saved));
}
#else
typedef int float_mode;
static float_mode enter_default_float_mode(void) { return 0; }
static void restore_float_mode(float_mode saved) { (void)saved; }
#endif

// ---- Running ----------------------------------------------------------------------------------

static void participate(be_job *job, void *context, unsigned index, be_barrier *barrier) {
  float_mode saved = enter_default_float_mode();
  job(context, index, barrier->n_threads, barrier);
  restore_float_mode(saved);
}

static void *worker_main(void *argument) {
  worker *self = argument;
  set_up_this_worker(self->index);
  bool spin = false;
  for (unsigned seen = 0;;) {
    seen = event_wait(&self->posted, seen, spin);
    if (self->quit)
      return NULL;
    spin = pool.barrier.spin; // the next job, if it comes soon, will probably be the same
    if (spin)
      claim_cpu();
    participate(pool.job, pool.context, self->index, &pool.barrier);
    barrier_arrive(&pool.barrier); // from here on the job's data may be gone
  }
}

void be_pool_run(be_job *job, void *context, unsigned n_threads) {
  unsigned available = be_pool_workers() + 1;
  unsigned n = n_threads < available ? n_threads : available;
  if (n <= 1 || atomic_exchange_explicit(&pool.busy, true, memory_order_acquire)) {
    static be_barrier alone = {.n_threads = 1}; // never written
    participate(job, context, 0, &alone);
    return;
  }
  pool.job = job;
  pool.context = context;
  pool.barrier.n_threads = n;
  pool.barrier.spin = n <= atomic_load_explicit(&pool.cpus, memory_order_relaxed);
  claim_first_cpu();
  for (unsigned i = 0; i + 1 < n; ++i)
    event_advance(&pool.workers[i].posted);
  participate(job, context, 0, &pool.barrier);
  be_barrier_wait(&pool.barrier);
  pool.barrier.n_threads = 1; // a forked job below this one on the stack waits for nobody, still
  atomic_store_explicit(&pool.busy, false, memory_order_release);
}

unsigned be_pool_workers(void) {
  return atomic_load_explicit(&pool.n_workers, memory_order_acquire);
}

// ---- Growing ----------------------------------------------------------------------------------

static bool start_worker(worker *w, unsigned index) {
  pthread_attr_t attributes;
  w->index = index;
  w->quit = false;
  if (!event_init(&w->posted))
    return false;
  bool started = false;
  if (pthread_attr_init(&attributes) == 0) {
    set_attributes(&attributes);
    started = pthread_create(&w->thread, &attributes, worker_main, w) == 0;
    pthread_attr_destroy(&attributes);
  }
  if (!started)
    event_destroy(&w->posted);
  return started;
}

static void stop_worker(worker *w) {
  w->quit = true;
  event_advance(&w->posted);
  pthread_join(w->thread, NULL);
  event_destroy(&w->posted);
}

// Workers [have, want): all of them or none.
static bool start_workers(unsigned have, unsigned want) {
  signal_mask saved;
  block_signals(&saved); // inherited from the first instruction on
  unsigned n = have;
  while (n < want && start_worker(&pool.workers[n], n + 1))
    ++n;
  restore_signals(&saved);
  if (n == want) {
    atomic_store_explicit(&pool.n_workers, n, memory_order_release);
    return true;
  }
  while (n > have)
    stop_worker(&pool.workers[--n]);
  return false;
}

be_status be_pool_reserve(unsigned n_threads) {
  if (n_threads == 0 || n_threads > BE_MAX_THREADS)
    return BE_ERR_ARGUMENT;
  if (n_threads == 1)
    return BE_OK;
  pthread_once(&fork_handler_once, set_fork_handler);
  if (!fork_handler_set)
    return BE_ERR_THREAD;

  while (atomic_exchange_explicit(&pool.growing, true, memory_order_acquire))
    sleep_briefly();
  be_status status = BE_OK;
  atomic_store_explicit(&pool.cpus, be_cpu_available(), memory_order_relaxed);
  if (!pool.ready) {
    find_fast_cpus();
    atomic_store_explicit(&pool.barrier.arrived, 0, memory_order_relaxed); // by a parent's job
    pool.ready = event_init(&pool.barrier.passed);
  }
  unsigned have = be_pool_workers();
  if (!pool.ready || (have + 1 < n_threads && !start_workers(have, n_threads - 1)))
    status = BE_ERR_THREAD;
  atomic_store_explicit(&pool.growing, false, memory_order_release);
  return status;
}
