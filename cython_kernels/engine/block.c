// SPDX-License-Identifier: MIT
#define _GNU_SOURCE // MAP_ANONYMOUS
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif
#include "block.h"

#include <stdlib.h>

#if !defined(_WIN32) && !defined(__wasi__)
#define OWN_MAPPING 1
#include <sys/mman.h>
#include <unistd.h>
#endif

static size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

be_status be_block_create(be_block *block, uint64_t bytes) {
  *block = (be_block){0};
  // A file's 64-bit sizes must not be narrowed to a 32-bit size_t.
  if (bytes > SIZE_MAX / 2)
    return BE_ERR_NO_MEMORY;
  size_t size = round_up((size_t)bytes, BE_BLOCK_ALIGNMENT);
#ifdef OWN_MAPPING
  size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = round_up(size, page);
  uint8_t *mapping = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED)
    return BE_ERR_NO_MEMORY;
  *block = (be_block){mapping + page + (inner - size), mapping, inner + 2 * page};
  if (inner > 0 && mprotect(mapping + page, inner, PROT_READ | PROT_WRITE) != 0) {
    be_block_destroy(block);
    return BE_ERR_NO_MEMORY;
  }
#else
  block->mapped = size + BE_BLOCK_ALIGNMENT;
  block->mapping = calloc(1, block->mapped);
  if (!block->mapping)
    return BE_ERR_NO_MEMORY;
  block->data = (uint8_t *)round_up((size_t)block->mapping, BE_BLOCK_ALIGNMENT);
#endif
  return BE_OK;
}

void be_block_destroy(be_block *block) {
#ifdef OWN_MAPPING
  if (block->mapping)
    munmap(block->mapping, block->mapped);
#else
  free(block->mapping);
#endif
  *block = (be_block){0};
}
