// SPDX-License-Identifier: MIT
// replay FILE: runs recorded launches and writes what their writable buffers hold to stdout, for
// builds with a sanitizer. Every buffer is a heap block of its exact size.
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <vector>

static void read_exactly(void *to, size_t bytes, FILE *file) {
  if (bytes && fread(to, 1, bytes, file) != bytes) {
    fprintf(stderr, "replay: the file ends early\n");
    exit(2);
  }
}

int main(int argc, char **argv) {
  FILE *file = argc == 2 ? fopen(argv[1], "rb") : nullptr;
  if (!file)
    return 2;
  char name[64];
  while (fread(name, 1, sizeof name, file) == sizeof name) {
    // groups 3, threads 3, threadgroup bytes 4, schedule, seed, bindings
    uint32_t words[13];
    read_exactly(words, sizeof words, file);
    sim_launch launch = {};
    launch.kernel = name;
    for (int i = 0; i < 3; i++) {
      launch.groups[i] = words[i];
      launch.threads[i] = words[3 + i];
    }
    for (int i = 0; i < 4; i++)
      launch.threadgroup_bytes[i] = words[6 + i];
    launch.schedule = words[10];
    launch.seed = words[11];
    std::vector<sim_binding> bindings(words[12]);
    for (sim_binding &b : bindings) {
      uint64_t fields[3]; // index, writable, bytes
      read_exactly(fields, sizeof fields, file);
      b = {};
      b.index = (uint32_t)fields[0];
      b.writable = (uint32_t)fields[1];
      b.bytes = fields[2];
      b.data = (unsigned char *)malloc(b.bytes ? b.bytes : 1);
      read_exactly(b.data, b.bytes, file);
    }
    launch.bindings = bindings.data();
    launch.n_bindings = words[12];
    if (sim_run(&launch) != 0) {
      fprintf(stderr, "%s: %s\n", name, launch.error);
      return 1;
    }
    for (sim_binding &b : bindings) {
      if (b.writable)
        fwrite(b.data, 1, b.bytes, stdout);
      free(b.data);
    }
  }
  fclose(file);
  return 0;
}
