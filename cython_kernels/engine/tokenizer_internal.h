// SPDX-License-Identifier: MIT
// What the parts of the tokenizer share: the opened section, scratch memory, reading helpers.
//
//   tokenizer_section.c       be_tokenizer_open: verifies, fills be_tokenizer
//   tokenizer_encode.c        be_tokenizer_encode: UTF-8 check, added tokens, template
//   tokenizer_normalize.c       NFC
//   tokenizer_pretokenize.c     text -> words
//   tokenizer_bpe.c             word -> ids
#ifndef BITNET_EDGE_ENGINE_TOKENIZER_INTERNAL_H
#define BITNET_EDGE_ENGINE_TOKENIZER_INTERNAL_H

#include <stdbool.h>

#include "tokenizer.h"

#define BE_TOKENIZER_MAGIC "BETK"
#define BE_NO_ID UINT32_MAX

enum {
  BE_TOKENIZER_VERSION = 1,
  BE_TOKENIZER_HEADER = 128,         // bytes
  BE_MERGE_RECORD = 16,              // left, right, rank, merged
  BE_TOKENIZER_MAX_VOCAB = 1 << 24,  // also of merges
  BE_TOKENIZER_MAX_BITS = 24,        // log2 of a hash table's buckets
  BE_TOKENIZER_MAX_BUCKET = 32,      // entries: bounds the time of one lookup
  BE_TOKENIZER_MAX_ADDED = 1 << 16,  // added tokens
  BE_TOKENIZER_MAX_ADDED_TEXT = 255, // bytes: bounds the time of one match
  BE_TOKENIZER_MAX_TEMPLATE = 64,    // ids of prefix, suffix and EOS list, each
  BE_TOKENIZER_MAX_BYTES = 1 << 30   // of all tokens together
};

enum { BE_IGNORE_MERGES = 1, BE_ADD_PREFIX_SPACE = 2 }; // flags of the section

typedef enum be_pretokenizer {
  BE_PRETOKENIZER_GPT2 = 1,
  BE_PRETOKENIZER_LLAMA3 = 2,
  BE_PRETOKENIZER_QWEN2 = 3
} be_pretokenizer;

typedef enum be_normalizer { BE_NORMALIZER_NONE = 0, BE_NORMALIZER_NFC = 1 } be_normalizer;

// Added tokens that are looked for in the same text, sorted by their own.
typedef struct be_added_group {
  uint32_t count;
  const uint8_t *ids;    // [count] u32
  const uint8_t *starts; // [count + 1] u32, into texts
  const uint8_t *texts;
  uint64_t first[4]; // 256 bits: bytes with which some text begins
} be_added_group;

// All pointers go into the section; u32 arrays are little-endian and read with be_u32.
struct be_tokenizer {
  uint32_t flags;
  be_pretokenizer pretokenizer;
  be_normalizer normalizer;
  uint32_t vocab_size;
  uint32_t bos; // or BE_NO_ID
  uint32_t merge_count, merge_bits;
  uint32_t lookup_count, lookup_bits;
  uint32_t prefix_count, suffix_count, eos_count;
  uint32_t token_bytes_size;
  const uint8_t *merges;                // [merge_count] records, grouped by bucket
  const uint8_t *merge_starts;          // [2^merge_bits + 1] u32, into merges
  const uint8_t *lookup_ids;            // [lookup_count] u32, grouped by bucket
  const uint8_t *lookup_starts;         // [2^lookup_bits + 1] u32, into lookup_ids
  const uint8_t *byte_ids;              // [256] u32, or BE_NO_ID: the model drops that byte
  const uint8_t *prefix, *suffix, *eos; // [.._count] u32
  const uint8_t *token_starts;          // [vocab_size + 1] u32, into token_bytes
  const uint8_t *token_flags;           // [vocab_size] u8
  const uint8_t *token_bytes;           // [token_bytes_size] u8
  be_added_group added_raw;             // matched in the text as given
  be_added_group added_normalized;      // matched in the normalized text between those
};

// Memory that is allocated when first needed and reused until the end of the call.
typedef struct be_buffer {
  void *data;
  size_t size;
} be_buffer;

// Makes the buffer at least `size` bytes; its contents are lost.
be_status be_buffer_reserve(be_buffer *buffer, size_t size);

// Where ids go: all are counted, those within the capacity are stored.
typedef struct be_id_sink {
  int32_t *ids;
  size_t capacity;
  size_t count;
} be_id_sink;

static inline void be_emit(be_id_sink *sink, uint32_t id) {
  if (sink->count < sink->capacity) {
    sink->ids[sink->count] = (int32_t)id;
  }
  sink->count++;
}

// One load on little-endian machines; right on any, at any alignment.
static inline uint32_t be_u32(const uint8_t *bytes) {
  return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static inline uint32_t be_u32_at(const uint8_t *array, size_t index) {
  return be_u32(array + 4 * index);
}

// The character at `at`, which is followed by all its bytes: callers hold verified UTF-8.
static inline uint32_t be_utf8_decode(const uint8_t *at, unsigned *size) {
  if (at[0] < 0x80) {
    *size = 1;
    return at[0];
  }
  if (at[0] < 0xe0) {
    *size = 2;
    return (at[0] & 0x1fu) << 6 | (at[1] & 0x3fu);
  }
  if (at[0] < 0xf0) {
    *size = 3;
    return (at[0] & 0x0fu) << 12 | (at[1] & 0x3fu) << 6 | (at[2] & 0x3fu);
  }
  *size = 4;
  return (at[0] & 0x07u) << 18 | (at[1] & 0x3fu) << 12 | (at[2] & 0x3fu) << 6 | (at[3] & 0x3fu);
}

// The length of the longest prefix that is UTF-8 (no surrogates, shortest forms only).
size_t be_utf8_valid(const uint8_t *text, size_t n);

// True when NFC keeps every character of the text, whatever is around it.
bool be_nfc_is_inert(const uint8_t *text, size_t n);
// Normalizes to NFC: the result is *n_out bytes at buffer->data, 12 bytes of scratch per byte.
be_status be_normalize_nfc(const uint8_t *text, size_t n, be_buffer *buffer, size_t *n_out);

// The bytes of the first word of `text` (n > 0).
size_t be_next_word(be_pretokenizer pretokenizer, const uint8_t *text, size_t n);

// Appends the ids of one word (n > 0).
be_status be_encode_word(const be_tokenizer *t, const uint8_t *word, size_t n, be_buffer *scratch,
                         be_id_sink *sink);

#endif
