// SPDX-License-Identifier: MIT
// Byte-pair encoding of one word: bytes become their ids, then the adjacent pair of lowest rank,
// the leftmost of equals, is merged until no pair has a merge.
//
// Short words (nearly all) scan an array on the stack. Long ones keep the candidate pairs in a
// heap: O(n log n) for any word, 24 bytes of scratch per byte of it.
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

enum { SHORT_WORD = 64 }; // the scan is quadratic: at most this many steps per byte

static const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);

// The top `bits` bits, 0 <= bits <= 24.
static inline uint32_t top_bits(uint64_t hash, uint32_t bits) {
  return (uint32_t)(hash >> 32 >> (32 - bits));
}

// The record that merges (left, right), or NULL.
static inline const uint8_t *find_merge(const be_tokenizer *t, uint32_t left, uint32_t right) {
  const uint64_t key = (uint64_t)left << 32 | right;
  const uint32_t bucket = top_bits(key * golden, t->merge_bits);
  const uint8_t *end = t->merges + (size_t)be_u32_at(t->merge_starts, bucket + 1) * BE_MERGE_RECORD;
  const uint8_t *at = t->merges + (size_t)be_u32_at(t->merge_starts, bucket) * BE_MERGE_RECORD;
  for (; at != end; at += BE_MERGE_RECORD) {
    if (be_u32_at(at, 0) == left && be_u32_at(at, 1) == right) {
      return at;
    }
  }
  return NULL;
}

static inline uint32_t merge_rank(const uint8_t *merge) { return be_u32_at(merge, 2); }
static inline uint32_t merge_result(const uint8_t *merge) { return be_u32_at(merge, 3); }

// The id of the token with exactly these bytes, among those the lookup table holds, or BE_NO_ID.
static uint32_t find_token(const be_tokenizer *t, const uint8_t *word, size_t n) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325); // FNV-1a, then spread to the top bits
  for (size_t i = 0; i < n; i++) {
    hash = (hash ^ word[i]) * UINT64_C(0x100000001b3);
  }
  const uint32_t bucket = top_bits(hash * golden, t->lookup_bits);
  const uint32_t end = be_u32_at(t->lookup_starts, bucket + 1);
  for (uint32_t i = be_u32_at(t->lookup_starts, bucket); i < end; i++) {
    const uint32_t id = be_u32_at(t->lookup_ids, i);
    const uint32_t start = be_u32_at(t->token_starts, id);
    if (be_u32_at(t->token_starts, id + 1) - start == n &&
        memcmp(t->token_bytes + start, word, n) == 0) {
      return id;
    }
  }
  return BE_NO_ID;
}

// A symbol and how it merges with the one to its right.
typedef struct be_symbol {
  uint32_t id;
  uint32_t rank; // BE_NO_ID: it does not
  uint32_t merged;
} be_symbol;

static inline void look_right(const be_tokenizer *t, be_symbol *symbol, const be_symbol *end) {
  const uint8_t *merge = symbol + 1 < end ? find_merge(t, symbol->id, symbol[1].id) : NULL;
  symbol->rank = merge != NULL ? merge_rank(merge) : BE_NO_ID;
  symbol->merged = merge != NULL ? merge_result(merge) : BE_NO_ID;
}

static void encode_short(const be_tokenizer *t, const uint8_t *word, size_t n, be_id_sink *sink) {
  be_symbol symbols[SHORT_WORD];
  be_symbol *end = symbols;
  for (size_t i = 0; i < n; i++) {
    const uint32_t id = be_u32_at(t->byte_ids, word[i]);
    if (id != BE_NO_ID) {
      end++->id = id;
    }
  }
  for (be_symbol *s = symbols; s < end; s++) {
    look_right(t, s, end);
  }
  for (;;) {
    be_symbol *best = symbols;
    for (be_symbol *s = symbols + 1; s < end; s++) {
      best = s->rank < best->rank ? s : best;
    }
    if (best >= end || best->rank == BE_NO_ID) {
      break;
    }
    best->id = best->merged;
    memmove(best + 1, best + 2, (size_t)((char *)end - (char *)(best + 2)));
    end--;
    look_right(t, best, end);
    if (best > symbols) {
      look_right(t, best - 1, end);
    }
  }
  for (const be_symbol *s = symbols; s < end; s++) {
    be_emit(sink, s->id);
  }
}

// A span of a long word that has become one symbol. Spans are found from either side: the first
// entry holds id and size, the last one the size again, all but the first have id BE_NO_ID.
typedef struct be_span {
  uint32_t id;
  uint32_t size;
} be_span;

// A min-heap of rank << 32 | position: lowest rank first, leftmost among equals. An entry whose
// pair has changed since is dropped when it comes up.
typedef struct be_heap {
  uint64_t *keys;
  size_t size;
} be_heap;

static void sift_down(be_heap *heap, size_t at, uint64_t key) {
  for (;;) {
    const size_t first = at * 4 + 1;
    if (first >= heap->size) {
      break;
    }
    const size_t last = first + 4 < heap->size ? first + 4 : heap->size;
    size_t least = first;
    for (size_t child = first + 1; child < last; child++) {
      least = heap->keys[child] < heap->keys[least] ? child : least;
    }
    if (key <= heap->keys[least]) {
      break;
    }
    heap->keys[at] = heap->keys[least];
    at = least;
  }
  heap->keys[at] = key;
}

static void heap_order(be_heap *heap) {
  for (size_t at = heap->size; at-- > 0;) {
    sift_down(heap, at, heap->keys[at]);
  }
}

static void heap_push(be_heap *heap, uint64_t key) {
  size_t at = heap->size++;
  while (at > 0 && key < heap->keys[(at - 1) / 4]) {
    heap->keys[at] = heap->keys[(at - 1) / 4];
    at = (at - 1) / 4;
  }
  heap->keys[at] = key;
}

static uint64_t heap_pop(be_heap *heap) {
  const uint64_t top = heap->keys[0];
  heap->size--;
  if (heap->size > 0) {
    sift_down(heap, 0, heap->keys[heap->size]);
  }
  return top;
}

static inline const uint8_t *merge_at(const be_tokenizer *t, const be_span *spans, size_t n,
                                      size_t at) {
  const size_t next = at + spans[at].size;
  return next < n ? find_merge(t, spans[at].id, spans[next].id) : NULL;
}

static inline void push_merge_at(const be_tokenizer *t, const be_span *spans, size_t n, size_t at,
                                 be_heap *heap) {
  const uint8_t *merge = merge_at(t, spans, n, at);
  if (merge != NULL) {
    heap_push(heap, (uint64_t)merge_rank(merge) << 32 | at);
  }
}

static void join(be_span *spans, size_t at, uint32_t merged) {
  const size_t next = at + spans[at].size;
  const uint32_t size = spans[at].size + spans[next].size;
  spans[next].id = BE_NO_ID;
  spans[at] = (be_span){merged, size};
  spans[at + size - 1].size = size;
}

static void merge_spans(const be_tokenizer *t, be_span *spans, size_t n, be_heap *heap) {
  for (size_t at = 0; at + 1 < n; at++) {
    const uint8_t *merge = merge_at(t, spans, n, at);
    if (merge != NULL) {
      heap->keys[heap->size++] = (uint64_t)merge_rank(merge) << 32 | at;
    }
  }
  heap_order(heap);
  while (heap->size > 0) {
    const uint64_t key = heap_pop(heap);
    const size_t at = (uint32_t)key;
    const uint8_t *merge = spans[at].id != BE_NO_ID ? merge_at(t, spans, n, at) : NULL;
    if (merge == NULL || merge_rank(merge) != key >> 32) {
      continue;
    }
    join(spans, at, merge_result(merge));
    push_merge_at(t, spans, n, at, heap);
    if (at > 0) {
      push_merge_at(t, spans, n, at - spans[at - 1].size, heap);
    }
  }
}

static be_status encode_long(const be_tokenizer *t, const uint8_t *word, size_t n,
                             be_buffer *scratch, be_id_sink *sink) {
  // At first one candidate per pair; each of the up to n - 1 merges takes one and adds two.
  const be_status status =
      be_buffer_reserve(scratch, n * sizeof(be_span) + 2 * n * sizeof(uint64_t));
  if (status != BE_OK) {
    return status;
  }
  be_heap heap = {scratch->data, 0};
  be_span *spans = (be_span *)(heap.keys + 2 * n);
  size_t count = 0;
  for (size_t i = 0; i < n; i++) {
    const uint32_t id = be_u32_at(t->byte_ids, word[i]);
    if (id != BE_NO_ID) {
      spans[count++] = (be_span){id, 1};
    }
  }
  merge_spans(t, spans, count, &heap);
  for (size_t at = 0; at < count; at += spans[at].size) {
    be_emit(sink, spans[at].id);
  }
  return BE_OK;
}

be_status be_encode_word(const be_tokenizer *t, const uint8_t *word, size_t n, be_buffer *scratch,
                         be_id_sink *sink) {
  if (t->flags & BE_IGNORE_MERGES) {
    const uint32_t id = find_token(t, word, n);
    if (id != BE_NO_ID) {
      be_emit(sink, id);
      return BE_OK;
    }
  }
  if (n <= SHORT_WORD) {
    encode_short(t, word, n, sink);
    return BE_OK;
  }
  return encode_long(t, word, n, scratch, sink);
}
