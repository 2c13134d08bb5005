// SPDX-License-Identifier: MIT
// Text to ids: check the UTF-8, cut out added tokens, normalize, cut out the added tokens of
// normalized text, then words, then the BPE model; around it all the template's ids.
#include <stdlib.h>
#include <string.h>

#include "tokenizer_internal.h"

typedef struct be_encoder {
  const be_tokenizer *t;
  bool parse_special;
  be_id_sink sink;
  be_buffer normalized; // one piece of text in NFC
  be_buffer prefixed;   // one piece of text behind a space
  be_buffer words;      // of be_encode_word
} be_encoder;

typedef be_status (*be_encode_piece)(be_encoder *e, const uint8_t *text, size_t n);

be_status be_buffer_reserve(be_buffer *buffer, size_t size) {
  if (size <= buffer->size) {
    return BE_OK;
  }
  free(buffer->data);
  buffer->data = malloc(size);
  buffer->size = buffer->data != NULL ? size : 0;
  return buffer->data != NULL ? BE_OK : BE_ERR_NO_MEMORY;
}

static inline bool continues(uint8_t byte) { return (byte & 0xc0) == 0x80; }

// The size of the character that begins with a byte >= 0x80, or 0 if it is not UTF-8.
static size_t valid_character(const uint8_t *at, size_t n) {
  const uint8_t lead = at[0];
  if (lead < 0xc2 || lead > 0xf4 || n < 2) { // stray continuation, overlong, beyond U+10FFFF
    return 0;
  }
  // The second byte excludes overlong forms, surrogates and what lies beyond U+10FFFF.
  const uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (at[1] < least || at[1] > most) {
    return 0;
  }
  if (lead < 0xe0) {
    return 2;
  }
  if (n < 3 || !continues(at[2])) {
    return 0;
  }
  if (lead < 0xf0) {
    return 3;
  }
  return n >= 4 && continues(at[3]) ? 4 : 0;
}

static inline bool eight_are_ascii(const uint8_t *at) {
  uint64_t eight;
  memcpy(&eight, at, sizeof eight);
  return (eight & UINT64_C(0x8080808080808080)) == 0;
}

size_t be_utf8_valid(const uint8_t *text, size_t n) {
  size_t i = 0;
  while (i < n) {
    if (n - i >= 8 && eight_are_ascii(text + i)) {
      i += 8;
      continue;
    }
    const size_t size = text[i] < 0x80 ? 1 : valid_character(text + i, n - i);
    if (size == 0) {
      return i;
    }
    i += size;
  }
  return n;
}

// The first entry in [low, high) of the group whose byte at `depth` is at least `byte`. The entries
// share their first `depth` bytes and are longer than that.
static uint32_t first_at_least(const be_added_group *group, uint32_t low, uint32_t high,
                               size_t depth, unsigned byte) {
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (group->texts[be_u32_at(group->starts, middle) + depth] < byte) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The longest added token that `text` begins with, or group->count: follows the text byte by byte,
// narrowing the range of the sorted texts that agree with it so far.
static uint32_t match_added(const be_added_group *group, const uint8_t *text, size_t n,
                            size_t *size) {
  uint32_t low = 0, high = group->count, found = group->count;
  for (size_t depth = 0; depth < n; depth++) {
    low = first_at_least(group, low, high, depth, text[depth]);
    high = first_at_least(group, low, high, depth, text[depth] + 1u);
    if (low == high) {
      break;
    }
    if (be_u32_at(group->starts, low + 1) - be_u32_at(group->starts, low) == depth + 1) {
      found = low++; // ends here; the shortest comes first
      *size = depth + 1;
    }
  }
  return found;
}

static inline bool may_begin_added(const be_added_group *group, uint8_t byte) {
  return group->first[byte / 64] >> byte % 64 & 1;
}

// Emits the added tokens of the group and passes the text between them to `encode_piece`. The
// leftmost match wins, the longest of those; one that is not wanted as a token stays text.
static be_status split_added(be_encoder *e, const be_added_group *group, const uint8_t *text,
                             size_t n, be_encode_piece encode_piece) {
  size_t start = 0, at = 0;
  while (group->count > 0 && at < n) {
    size_t size = 1;
    const uint32_t found = may_begin_added(group, text[at])
                               ? match_added(group, text + at, n - at, &size)
                               : group->count;
    const uint32_t id = found < group->count ? be_u32_at(group->ids, found) : BE_NO_ID;
    if (id != BE_NO_ID && (e->parse_special || !(e->t->token_flags[id] & BE_TOKEN_SPECIAL))) {
      const be_status status = at > start ? encode_piece(e, text + start, at - start) : BE_OK;
      if (status != BE_OK) {
        return status;
      }
      be_emit(&e->sink, id);
      start = at + size;
    }
    at += size;
  }
  return start < n ? encode_piece(e, text + start, n - start) : BE_OK;
}

static be_status encode_words(be_encoder *e, const uint8_t *text, size_t n) {
  if ((e->t->flags & BE_ADD_PREFIX_SPACE) && text[0] != ' ') {
    const be_status status = be_buffer_reserve(&e->prefixed, n + 1);
    if (status != BE_OK) {
      return status;
    }
    uint8_t *copy = e->prefixed.data;
    copy[0] = ' ';
    memcpy(copy + 1, text, n);
    text = copy;
    n++;
  }
  for (size_t at = 0; at < n;) {
    const size_t size = be_next_word(e->t->pretokenizer, text + at, n - at);
    const be_status status = be_encode_word(e->t, text + at, size, &e->words, &e->sink);
    if (status != BE_OK) {
      return status;
    }
    at += size;
  }
  return BE_OK;
}

static be_status encode_normalized(be_encoder *e, const uint8_t *text, size_t n) {
  if (e->t->normalizer == BE_NORMALIZER_NFC && !be_nfc_is_inert(text, n)) {
    const be_status status = be_normalize_nfc(text, n, &e->normalized, &n);
    if (status != BE_OK) {
      return status;
    }
    text = e->normalized.data;
  }
  return split_added(e, &e->t->added_normalized, text, n, encode_words);
}

static void emit_all(be_id_sink *sink, const uint8_t *ids, size_t count) {
  for (size_t i = 0; i < count; i++) {
    be_emit(sink, be_u32_at(ids, i));
  }
}

be_status be_tokenizer_encode(const be_tokenizer *t, const uint8_t *utf8, size_t n, unsigned flags,
                              int32_t *ids, size_t capacity, size_t *count) {
  if (t == NULL || count == NULL || (utf8 == NULL && n > 0) || (ids == NULL && capacity > 0)) {
    return BE_ERR_ARGUMENT;
  }
  *count = 0;
  if (n > BE_TOKENIZER_MAX_TEXT ||
      (flags & ~(unsigned)(BE_TOK_ADD_SPECIAL | BE_TOK_PARSE_SPECIAL))) {
    return BE_ERR_ARGUMENT;
  }
  const size_t valid = be_utf8_valid(utf8, n);
  if (valid < n) {
    *count = valid;
    return BE_ERR_INVALID_UTF8;
  }
  be_encoder e = {.t = t,
                  .parse_special = (flags & BE_TOK_PARSE_SPECIAL) != 0,
                  .sink = {.ids = ids, .capacity = capacity}};
  if (flags & BE_TOK_ADD_SPECIAL) {
    emit_all(&e.sink, t->prefix, t->prefix_count);
  }
  const be_status status = split_added(&e, &t->added_raw, utf8, n, encode_normalized);
  if (flags & BE_TOK_ADD_SPECIAL) {
    emit_all(&e.sink, t->suffix, t->suffix_count);
  }
  free(e.normalized.data);
  free(e.prefixed.data);
  free(e.words.data);
  if (status != BE_OK) {
    return status;
  }
  *count = e.sink.count;
  return e.sink.count <= capacity ? BE_OK : BE_ERR_CAPACITY;
}
