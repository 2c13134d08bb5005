// SPDX-License-Identifier: MIT
// Opening a tokenizer section (bitnet_edge/tokenizer_format.md): everything that encode and
// token_bytes rely on is verified here, once, so that they run without checks.
//
// The tables lie in a fixed order and their sizes follow from the counts in the header: there are
// no stored offsets to tables, hence no overlaps and no holes. A check returns NULL or the static
// text of the rule that is broken.
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

// Reserves `bytes` at the cursor; sizes are at most 2^28 each, far from overflow.
static const uint8_t *take(const uint8_t *section, uint64_t *cursor, uint64_t bytes) {
  const uint8_t *at = section == NULL ? NULL : section + *cursor;
  *cursor += bytes;
  return at;
}

// Sets the pointers of `t` from its counts and returns the size that the section must have.
static uint64_t lay_out(be_tokenizer *t, const uint8_t *section, uint32_t added_text_size) {
  const uint64_t raw = t->added_raw.count, normalized = t->added_normalized.count;
  uint64_t cursor = BE_TOKENIZER_HEADER;
  t->merges = take(section, &cursor, (uint64_t)t->merge_count * BE_MERGE_RECORD);
  t->merge_starts = take(section, &cursor, ((UINT64_C(1) << t->merge_bits) + 1) * 4);
  t->lookup_ids = take(section, &cursor, (uint64_t)t->lookup_count * 4);
  t->lookup_starts = take(section, &cursor, ((UINT64_C(1) << t->lookup_bits) + 1) * 4);
  t->byte_ids = take(section, &cursor, 256 * 4);
  t->prefix = take(section, &cursor, (uint64_t)t->prefix_count * 4);
  t->suffix = take(section, &cursor, (uint64_t)t->suffix_count * 4);
  t->eos = take(section, &cursor, (uint64_t)t->eos_count * 4);
  t->added_raw.ids = take(section, &cursor, raw * 4);
  t->added_normalized.ids = take(section, &cursor, normalized * 4);
  t->added_raw.starts = take(section, &cursor, raw * 4);
  t->added_normalized.starts = take(section, &cursor, (normalized + 1) * 4);
  t->token_starts = take(section, &cursor, ((uint64_t)t->vocab_size + 1) * 4);
  t->token_flags = take(section, &cursor, t->vocab_size);
  t->token_bytes = take(section, &cursor, t->token_bytes_size);
  t->added_raw.texts = take(section, &cursor, added_text_size);
  t->added_normalized.texts = t->added_raw.texts;
  return cursor;
}

static const char *read_header(be_tokenizer *t, const uint8_t *h, uint32_t *added_text_size) {
  t->flags = be_u32_at(h, 2);
  t->pretokenizer = (be_pretokenizer)be_u32_at(h, 3);
  t->normalizer = (be_normalizer)be_u32_at(h, 4);
  t->vocab_size = be_u32_at(h, 5);
  t->bos = be_u32_at(h, 6);
  t->merge_count = be_u32_at(h, 7);
  t->merge_bits = be_u32_at(h, 8);
  t->lookup_count = be_u32_at(h, 9);
  t->lookup_bits = be_u32_at(h, 10);
  t->added_raw.count = be_u32_at(h, 11);
  t->added_normalized.count = be_u32_at(h, 12);
  t->prefix_count = be_u32_at(h, 13);
  t->suffix_count = be_u32_at(h, 14);
  t->eos_count = be_u32_at(h, 15);
  t->token_bytes_size = be_u32_at(h, 16);
  *added_text_size = be_u32_at(h, 17);
  for (size_t i = 18; i < BE_TOKENIZER_HEADER / 4; i++) {
    if (be_u32_at(h, i) != 0) {
      return "reserved header fields must be zero";
    }
  }
  return NULL;
}

static const char *check_header(const be_tokenizer *t, uint32_t added_text_size) {
  if (t->flags & ~(uint32_t)(BE_IGNORE_MERGES | BE_ADD_PREFIX_SPACE)) {
    return "unknown flag";
  }
  if (t->pretokenizer < BE_PRETOKENIZER_GPT2 || t->pretokenizer > BE_PRETOKENIZER_QWEN2) {
    return "unknown pre-tokenizer";
  }
  if (t->normalizer > BE_NORMALIZER_NFC) {
    return "unknown normalizer";
  }
  if (t->vocab_size == 0 || t->vocab_size > BE_TOKENIZER_MAX_VOCAB) {
    return "vocabulary size must be 1 .. 2^24";
  }
  if (t->bos != BE_NO_ID && t->bos >= t->vocab_size) {
    return "BOS id is outside the vocabulary";
  }
  if (t->merge_count > BE_TOKENIZER_MAX_VOCAB || t->lookup_count > t->vocab_size) {
    return "too many merges or lookup entries";
  }
  if (t->merge_bits > BE_TOKENIZER_MAX_BITS || t->lookup_bits > BE_TOKENIZER_MAX_BITS) {
    return "hash tables have at most 2^24 buckets";
  }
  if (t->added_raw.count > BE_TOKENIZER_MAX_ADDED ||
      t->added_normalized.count > BE_TOKENIZER_MAX_ADDED) {
    return "too many added tokens";
  }
  if (t->prefix_count > BE_TOKENIZER_MAX_TEMPLATE || t->suffix_count > BE_TOKENIZER_MAX_TEMPLATE ||
      t->eos_count > BE_TOKENIZER_MAX_TEMPLATE) {
    return "prefix, suffix and EOS list have at most 64 ids each";
  }
  if (t->token_bytes_size > BE_TOKENIZER_MAX_BYTES || added_text_size > BE_TOKENIZER_MAX_BYTES) {
    return "tokens have at most 2^30 bytes";
  }
  return NULL;
}

// starts[0] == 0 <= starts[1] <= ... <= starts[count] == total, steps of at most `longest`.
static bool ascending(const uint8_t *starts, size_t count, uint32_t total, uint32_t longest) {
  uint32_t last = 0;
  if (be_u32_at(starts, 0) != 0) {
    return false;
  }
  for (size_t i = 1; i <= count; i++) {
    const uint32_t start = be_u32_at(starts, i);
    if (start < last || start - last > longest) {
      return false;
    }
    last = start;
  }
  return last == total;
}

static bool all_below(const uint8_t *ids, size_t count, uint32_t limit) {
  for (size_t i = 0; i < count; i++) {
    if (be_u32_at(ids, i) >= limit) {
      return false;
    }
  }
  return true;
}

static const char *check_merges(const be_tokenizer *t) {
  if (!ascending(t->merge_starts, (size_t)1 << t->merge_bits, t->merge_count,
                 BE_TOKENIZER_MAX_BUCKET)) {
    return "merge buckets must be ascending, of at most 32 merges, and cover all";
  }
  for (size_t i = 0; i < t->merge_count; i++) {
    const uint8_t *merge = t->merges + i * BE_MERGE_RECORD;
    if (be_u32_at(merge, 2) >= t->merge_count || be_u32_at(merge, 3) >= t->vocab_size) {
      return "a merge's rank or id is out of range";
    }
  }
  return NULL;
}

static const char *check_ids(const be_tokenizer *t) {
  if (!ascending(t->lookup_starts, (size_t)1 << t->lookup_bits, t->lookup_count,
                 BE_TOKENIZER_MAX_BUCKET)) {
    return "lookup buckets must be ascending, of at most 32 tokens, and cover all";
  }
  if (!all_below(t->lookup_ids, t->lookup_count, t->vocab_size)) {
    return "a lookup id is outside the vocabulary";
  }
  for (size_t i = 0; i < 256; i++) {
    const uint32_t id = be_u32_at(t->byte_ids, i);
    if (id >= t->vocab_size && id != BE_NO_ID) {
      return "a byte's id is outside the vocabulary";
    }
  }
  if (!all_below(t->prefix, t->prefix_count, t->vocab_size) ||
      !all_below(t->suffix, t->suffix_count, t->vocab_size) ||
      !all_below(t->eos, t->eos_count, t->vocab_size)) {
    return "a prefix, suffix or EOS id is outside the vocabulary";
  }
  return NULL;
}

static const char *check_tokens(const be_tokenizer *t) {
  if (!ascending(t->token_starts, t->vocab_size, t->token_bytes_size, t->token_bytes_size)) {
    return "token offsets must be ascending and cover all token bytes";
  }
  for (size_t i = 0; i < t->vocab_size; i++) {
    const uint8_t flags = t->token_flags[i];
    if (flags > BE_TOKEN_ABSENT) { // absent excludes the others
      return "unknown token flag";
    }
    if (flags == BE_TOKEN_ABSENT &&
        be_u32_at(t->token_starts, i) != be_u32_at(t->token_starts, i + 1)) {
      return "an absent token must have no bytes";
    }
  }
  return NULL;
}

static int compare_texts(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
  const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
  return order != 0 ? order : (a_size > b_size) - (a_size < b_size);
}

static const char *check_added_group(const be_tokenizer *t, be_added_group *group) {
  const uint8_t *last = NULL;
  size_t last_size = 0;
  for (size_t i = 0; i < group->count; i++) {
    const uint32_t start = be_u32_at(group->starts, i);
    const uint8_t *text = group->texts + start;
    const size_t size = be_u32_at(group->starts, i + 1) - start;
    const uint32_t id = be_u32_at(group->ids, i);
    if (id >= t->vocab_size || !(t->token_flags[id] & BE_TOKEN_ADDED)) {
      return "an added token's id is outside the vocabulary or not flagged as added";
    }
    // Whole UTF-8, so that the text around a match is whole too.
    if (size == 0 || be_utf8_valid(text, size) != size) {
      return "an added token's text must be UTF-8 and not empty";
    }
    if (last != NULL && compare_texts(last, last_size, text, size) >= 0) {
      return "added tokens must be sorted by text, without duplicates";
    }
    group->first[text[0] / 64] |= UINT64_C(1) << text[0] % 64;
    last = text;
    last_size = size;
  }
  return NULL;
}

static const char *check_added(be_tokenizer *t, uint32_t added_text_size) {
  // The two groups share one array of starts; entry raw.count ends one and begins the other.
  const size_t count = (size_t)t->added_raw.count + t->added_normalized.count;
  if (!ascending(t->added_raw.starts, count, added_text_size, BE_TOKENIZER_MAX_ADDED_TEXT)) {
    return "added-token offsets must be ascending, of at most 255 bytes, and cover all texts";
  }
  const char *what = check_added_group(t, &t->added_raw);
  return what != NULL ? what : check_added_group(t, &t->added_normalized);
}

static be_status verify(be_tokenizer *t, const uint8_t *section, size_t size, const char **what) {
  if (size < BE_TOKENIZER_HEADER) {
    *what = "section is shorter than its header";
    return BE_ERR_TRUNCATED;
  }
  if (memcmp(section, BE_TOKENIZER_MAGIC, 4) != 0) {
    *what = "section does not begin with " BE_TOKENIZER_MAGIC;
    return BE_ERR_TOKENIZER;
  }
  if (be_u32_at(section, 1) != BE_TOKENIZER_VERSION) {
    *what = "only version 1 is known";
    return BE_ERR_VERSION;
  }
  uint32_t added_text_size;
  if ((*what = read_header(t, section, &added_text_size)) != NULL ||
      (*what = check_header(t, added_text_size)) != NULL) {
    return BE_ERR_TOKENIZER;
  }
  const uint64_t needed = lay_out(t, NULL, added_text_size);
  if (needed != size) {
    *what = "section size does not follow from its header";
    return needed > size ? BE_ERR_TRUNCATED : BE_ERR_TOKENIZER;
  }
  lay_out(t, section, added_text_size);
  if ((*what = check_merges(t)) != NULL || (*what = check_ids(t)) != NULL ||
      (*what = check_tokens(t)) != NULL || (*what = check_added(t, added_text_size)) != NULL) {
    return BE_ERR_TOKENIZER;
  }
  return BE_OK;
}

be_status be_tokenizer_open(be_tokenizer **out, const uint8_t *section, size_t size,
                            const char **what) {
  const char *ignored;
  const char **reason = what != NULL ? what : &ignored;
  *reason = "NULL argument";
  if (out == NULL || section == NULL) {
    return BE_ERR_ARGUMENT;
  }
  *out = NULL;
  *reason = "no memory for the tokenizer";
  be_tokenizer *t = calloc(1, sizeof *t);
  if (t == NULL) {
    return BE_ERR_NO_MEMORY;
  }
  const be_status status = verify(t, section, size, reason);
  if (status != BE_OK) {
    free(t);
    return status;
  }
  *out = t;
  return BE_OK;
}

void be_tokenizer_close(be_tokenizer *tokenizer) { free(tokenizer); }

int32_t be_tokenizer_vocab_size(const be_tokenizer *t) { return (int32_t)t->vocab_size; }

int32_t be_tokenizer_bos(const be_tokenizer *t) {
  return t->bos == BE_NO_ID ? -1 : (int32_t)t->bos;
}

size_t be_tokenizer_eos_count(const be_tokenizer *t) { return t->eos_count; }

int32_t be_tokenizer_eos(const be_tokenizer *t, size_t index) {
  return index < t->eos_count ? (int32_t)be_u32_at(t->eos, index) : -1;
}

size_t be_tokenizer_bytes(const be_tokenizer *t) { return sizeof *t; }

be_status be_tokenizer_token_bytes(const be_tokenizer *t, int32_t id, const uint8_t **bytes,
                                   size_t *n, unsigned *token_flags) {
  if (id < 0 || (uint32_t)id >= t->vocab_size) {
    return BE_ERR_ARGUMENT;
  }
  const uint32_t start = be_u32_at(t->token_starts, (size_t)id);
  *bytes = t->token_bytes + start;
  *n = be_u32_at(t->token_starts, (size_t)id + 1) - start;
  *token_flags = t->token_flags[id];
  return BE_OK;
}
