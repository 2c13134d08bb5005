// SPDX-License-Identifier: MIT
// What the metal_stdlib of this folder asks of the machine that runs the lanes.
#ifndef BITNET_EDGE_TESTS_METAL_SIMULATOR_H
#define BITNET_EDGE_TESTS_METAL_SIMULATOR_H

#include <stddef.h>
#include <stdint.h>

enum { SIM_WIDTH = 32, SIM_SLOT = 64 };

// Where the running lane is; what the attributes of a kernel's parameters give.
struct sim_position {
  uint32_t at[3], threads[3];   // in the threadgroup
  uint32_t group[3], groups[3]; // in the grid
  uint32_t index;               // thread_index_in_threadgroup
  uint32_t lane, simdgroup, simdgroups;
};

const sim_position &sim_here();

// All lanes of the threadgroup, or of the simdgroup, meet. `memory`: 1 device, 2 threadgroup.
void sim_barrier(bool whole_threadgroup, unsigned memory, const char *file, int line);

// Every lane of the simdgroup hands in `bytes` and may then look at any lane's; the result is
// valid until the lane's next exchange.
const char (*sim_exchange(const void *value, size_t bytes, const char *file, int line))[SIM_SLOT];

// Order in which a reduction visits lanes: it is not the shader's to know.
unsigned sim_reduction_lane(unsigned step);

typedef void sim_kernel_fn(void *const *buffers, void *const *threadgroup);
struct sim_kernel {
  const char *name;
  sim_kernel_fn *run;
};
extern const sim_kernel sim_kernels[]; // generated; the last has no name

// One buffer of a launch. The counters are written by a traced build.
struct sim_binding {
  unsigned char *data;
  uint64_t bytes;
  uint32_t index, writable;
  uint64_t read_bytes, written_bytes;
  unsigned char *touched; // null, or for each byte: 1 was read, 2 was written
};

enum { SIM_FORWARD, SIM_REVERSE, SIM_SHUFFLED };

struct sim_launch {
  const char *kernel;
  uint32_t groups[3], threads[3];
  sim_binding *bindings;
  uint32_t n_bindings;
  uint32_t threadgroup_bytes[4];
  uint32_t schedule, seed;
  char error[512];
};

// Runs the whole grid. 0, or -1 with `error` filled.
extern "C" int sim_run(sim_launch *launch);

#endif
