// SPDX-License-Identifier: MIT
// One pool of worker threads per process: fork-join with a cheap barrier inside.
//
// The engine runs a whole forward pass as ONE job: every participant executes the same function
// and meets the others at be_barrier_wait between phases. Waiting spins for about 50 us and then
// parks, so an idle pool costs no CPU time.
#ifndef BITNET_EDGE_THREAD_POOL_H
#define BITNET_EDGE_THREAD_POOL_H

#include "status.h"

enum { BE_MAX_THREADS = 64 };

typedef struct be_barrier be_barrier; // shared by the participants of one job

// `thread` is 0 (the caller) .. n_threads - 1; n_threads is what was really granted. A job runs in
// the default floating-point mode (rounding to nearest, denormals kept), whatever the caller's; a
// worker has 256 KiB of stack for it. When it
// forks, the job in the child misses what the other participants would have done.
typedef void be_job(void *context, unsigned thread, unsigned n_threads, be_barrier *barrier);

// Makes sure that `n_threads - 1` workers exist (the caller is a participant). They stay parked
// until used, with all signals blocked but those of faults. Fails with BE_ERR_THREAD, leaving the
// pool as it was; BE_ERR_ARGUMENT unless 1 <= n_threads <= BE_MAX_THREADS.
be_status be_pool_reserve(unsigned n_threads);

// Runs `job` on n_threads participants (fewer when fewer were reserved) and returns when all have
// finished. When the pool is serving another caller or the calling job itself, or after fork() in
// the child until be_pool_reserve is called again, the job runs on the caller's thread alone
// (n_threads = 1): results never depend on it.
void be_pool_run(be_job *job, void *context, unsigned n_threads);

// Returns when every participant has arrived; a full memory barrier. Free when n_threads is 1.
void be_barrier_wait(be_barrier *barrier);

// Workers in existence, for `info` and tests.
unsigned be_pool_workers(void);

// CPUs this process may use: the affinity mask and the cgroup CPU quota (v1 and v2; a part of a CPU
// counts as one), at least 1. Reads files, in 0.1 to 0.3 ms.
unsigned be_cpu_available(void);

#endif
