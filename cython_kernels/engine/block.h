// SPDX-License-Identifier: MIT
// A large zeroed block of private memory in a mapping of its own.
//
//   | inaccessible page | unused: less than a page | bytes | inaccessible page |
//
// The pages around it keep the kernel from joining it with other mappings, so that its private
// bytes can be read from /proc/self/smaps, and turn an access beyond its end into a fault. Pages
// are not private before they are written. On Windows and WASI an allocation.
#ifndef BITNET_EDGE_ENGINE_BLOCK_H
#define BITNET_EDGE_ENGINE_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum { BE_BLOCK_ALIGNMENT = 64 };

typedef struct be_block {
  uint8_t *data; // of the size asked for, aligned to 64
  void *mapping; // begin and size of what is mapped, to be given back
  size_t mapped;
} be_block;

be_status be_block_create(be_block *block, uint64_t bytes);
void be_block_destroy(be_block *block); // also of one zeroed or not created

#endif
