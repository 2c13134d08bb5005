// SPDX-License-Identifier: MIT
// Tests of the tokenizer's C API, `test_tokenizer CASE SECTION TEXT`; run by test_tokenizer.py.
// Linked with --wrap=malloc and --wrap=calloc. SECTION and TEXT are files; they are held in blocks
// of exactly their size, so that AddressSanitizer sees any read beyond them.
#include "tokenizer.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                              \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

typedef struct bytes {
  uint8_t *data;
  size_t size;
} bytes;

static bytes section, text;

// ---- The wrapped calls ------------------------------------------------------------------------

static int allocations_left = -1; // then malloc and calloc fail; -1: never

static bool may_allocate(void) {
  if (allocations_left == 0) {
    return false;
  }
  allocations_left -= allocations_left > 0;
  return true;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) { return may_allocate() ? __real_malloc(size) : NULL; }

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
  return may_allocate() ? __real_calloc(count, size) : NULL;
}

// ---- Helpers ----------------------------------------------------------------------------------

static bytes copy_of(const uint8_t *data, size_t size) {
  const bytes copy = {malloc(size), size};
  CHECK(copy.data != NULL || size == 0);
  memcpy(copy.data, data, size);
  return copy;
}

static bytes read_file(const char *path) {
  static uint8_t buffer[1 << 20];
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL);
  const size_t size = fread(buffer, 1, sizeof buffer, file);
  CHECK(size < sizeof buffer && fclose(file) == 0);
  return copy_of(buffer, size);
}

static be_tokenizer *open_section(void) {
  be_tokenizer *t = NULL;
  CHECK(be_tokenizer_open(&t, section.data, section.size, NULL) == BE_OK);
  return t;
}

// ---- Cases ------------------------------------------------------------------------------------

// The ids of TEXT under each combination of flags, one line each.
static void print_ids(void) {
  be_tokenizer *t = open_section();
  for (unsigned flags = 0; flags < 4; flags++) {
    size_t count, again;
    CHECK(be_tokenizer_encode(t, text.data, text.size, flags, NULL, 0, &count) == BE_ERR_CAPACITY);
    int32_t *ids = malloc(count * sizeof *ids);
    CHECK(ids != NULL);
    CHECK(be_tokenizer_encode(t, text.data, text.size, flags, ids, count, &again) == BE_OK);
    CHECK(again == count);
    for (size_t i = 0; i < count; i++) {
      printf("%s%d", i > 0 ? " " : "", (int)ids[i]);
    }
    printf("\n");
    free(ids);
  }
  be_tokenizer_close(t);
}

static void capacity(void) {
  be_tokenizer *t = open_section();
  int32_t all[64], some[64];
  size_t count, needed;
  const size_t n = text.size < 40 ? text.size : 40;
  CHECK(be_tokenizer_encode(t, text.data, n, 0, all, 64, &count) == BE_OK && count > 2);
  for (size_t capacity = 0; capacity < count; capacity++) {
    memset(some, 0xff, sizeof some);
    CHECK(be_tokenizer_encode(t, text.data, n, 0, some, capacity, &needed) == BE_ERR_CAPACITY);
    CHECK(needed == count && memcmp(some, all, capacity * sizeof *all) == 0);
    CHECK(some[capacity] == -1);
  }
  be_tokenizer_close(t);
}

static void arguments(void) {
  be_tokenizer *t = (be_tokenizer *)&section;
  const char *what = NULL;
  CHECK(be_tokenizer_open(NULL, section.data, section.size, &what) == BE_ERR_ARGUMENT && what);
  CHECK(be_tokenizer_open(&t, NULL, 0, NULL) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_open(&t, section.data, 0, NULL) == BE_ERR_TRUNCATED && t == NULL);
  be_tokenizer_close(NULL);

  t = open_section();
  int32_t ids[4];
  size_t count = 99;
  const uint8_t letter[] = {'a'};
  CHECK(be_tokenizer_encode(NULL, letter, 1, 0, ids, 4, &count) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_encode(t, NULL, 1, 0, ids, 4, &count) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_encode(t, letter, 1, 0, NULL, 4, &count) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_encode(t, letter, 1, 0, ids, 4, NULL) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_encode(t, letter, 1, 4, ids, 4, &count) == BE_ERR_ARGUMENT && count == 0);
  const size_t beyond = (size_t)BE_TOKENIZER_MAX_TEXT + 1;
  CHECK(be_tokenizer_encode(t, letter, beyond, 0, ids, 4, &count) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &count) == BE_OK && count == 0);

  const uint8_t *data;
  unsigned flags;
  const int32_t size = be_tokenizer_vocab_size(t);
  CHECK(be_tokenizer_token_bytes(t, -1, &data, &count, &flags) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_token_bytes(t, size, &data, &count, &flags) == BE_ERR_ARGUMENT);
  CHECK(be_tokenizer_token_bytes(t, size - 1, &data, &count, &flags) == BE_OK);
  CHECK(data >= section.data && data + count <= section.data + section.size);
  CHECK(be_tokenizer_eos(t, be_tokenizer_eos_count(t)) == -1);
  CHECK(be_tokenizer_bytes(t) < 1024);
  be_tokenizer_close(t);
}

// Every allocation of opening and of encoding fails in turn; LeakSanitizer watches the rest.
static void no_memory(void) {
  be_tokenizer *t = NULL;
  const char *what = NULL;
  allocations_left = 0;
  CHECK(be_tokenizer_open(&t, section.data, section.size, &what) == BE_ERR_NO_MEMORY);
  CHECK(t == NULL && what != NULL);
  allocations_left = -1;
  t = open_section();
  int failures = 0;
  for (;; failures++) {
    size_t count = 99;
    allocations_left = failures;
    const be_status status = be_tokenizer_encode(t, text.data, text.size, 3, NULL, 0, &count);
    allocations_left = -1;
    if (status == BE_ERR_CAPACITY) {
      break;
    }
    CHECK(status == BE_ERR_NO_MEMORY && count == 0);
  }
  CHECK(failures >= 3); // normalized text, text behind a space, a long word
  be_tokenizer_close(t);
}

static void truncations(void) {
  for (size_t size = 0; size < section.size; size++) {
    const bytes part = copy_of(section.data, size);
    be_tokenizer *t;
    const char *what = NULL;
    CHECK(be_tokenizer_open(&t, part.data, size, &what) == BE_ERR_TRUNCATED && what != NULL);
    free(part.data);
  }
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
#define CASE(name) {#name, name}
    CASE(print_ids), CASE(capacity), CASE(arguments), CASE(no_memory), CASE(truncations),
};

int main(int argc, char **argv) {
  CHECK(argc == 4);
  section = read_file(argv[2]);
  text = read_file(argv[3]);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (strcmp(argv[1], cases[i].name) == 0) {
      cases[i].run();
      free(section.data);
      free(text.data);
      return 0;
    }
  }
  return 2;
}
