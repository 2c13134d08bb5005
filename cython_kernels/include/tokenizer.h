// SPDX-License-Identifier: MIT
// Byte-level BPE over a tokenizer section of a .bte file (bitnet_edge/tokenizer_format.md), read
// where it lies: a be_tokenizer holds pointers into the section and a few hundred bytes of its own,
// whatever the size of the vocabulary.
//
// Ids equal those of the Hugging Face `tokenizers` library on any text. Not implemented, and
// refused by the exporter: SentencePiece, WordPiece and Unigram models, dropout, regexes other than
// the three of be_pretokenizer, normalizers other than NFC, added tokens that strip or need whole
// words.
//
// A tokenizer is immutable after opening; any number of threads may use it at once.
#ifndef BITNET_EDGE_TOKENIZER_H
#define BITNET_EDGE_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct be_tokenizer be_tokenizer;

// Flags of be_tokenizer_encode.
enum {
  BE_TOK_ADD_SPECIAL = 1,  // wrap the ids in the template's prefix and suffix (BOS, EOS)
  BE_TOK_PARSE_SPECIAL = 2 // special tokens spelled in the text become their ids; without it
                           // they are plain text (added tokens that are not special always match)
};

// Flags of a token.
enum {
  BE_TOKEN_SPECIAL = 1, // control token, left out of decoded text on request
  BE_TOKEN_ADDED = 2,   // matched in the text before the BPE model runs
  BE_TOKEN_ABSENT = 4   // a hole in the id range: no token has this id
};

enum { BE_TOKENIZER_MAX_TEXT = 1 << 30 }; // bytes of one be_tokenizer_encode call

// Verifies `section` entirely and points into it; it must stay mapped until be_tokenizer_close.
// On failure *what (may be NULL) names the first rule that the section breaks, as a static text.
be_status be_tokenizer_open(be_tokenizer **out, const uint8_t *section, size_t size,
                            const char **what);
void be_tokenizer_close(be_tokenizer *tokenizer);

int32_t be_tokenizer_vocab_size(const be_tokenizer *tokenizer); // ids are 0 .. vocab_size - 1
int32_t be_tokenizer_bos(const be_tokenizer *tokenizer);        // -1: the model has none
size_t be_tokenizer_eos_count(const be_tokenizer *tokenizer);
int32_t be_tokenizer_eos(const be_tokenizer *tokenizer, size_t index); // -1 beyond the last
size_t be_tokenizer_bytes(const be_tokenizer *tokenizer);              // private memory it holds

// Encodes n bytes of UTF-8. *count is the number of ids:
//   BE_OK                 written to `ids`
//   BE_ERR_CAPACITY       needed; the first `capacity` are written (0 and NULL just count)
// or, with nothing of use written:
//   BE_ERR_INVALID_UTF8   *count is the offset of the first byte that is not UTF-8
//   BE_ERR_ARGUMENT       NULL, unknown flags or n > BE_TOKENIZER_MAX_TEXT
//   BE_ERR_NO_MEMORY      scratch: 24 bytes per byte of the longest word above 64 bytes, and, for a
//                         tokenizer with NFC, 12 per byte of text that holds marks or is not NFC
be_status be_tokenizer_encode(const be_tokenizer *tokenizer, const uint8_t *utf8, size_t n,
                              unsigned flags, int32_t *ids, size_t capacity, size_t *count);

// The bytes a token decodes to (inside the section; not always whole UTF-8) and its flags.
// BE_ERR_ARGUMENT when id is not in 0 .. vocab_size - 1.
be_status be_tokenizer_token_bytes(const be_tokenizer *tokenizer, int32_t id, const uint8_t **bytes,
                                   size_t *n, unsigned *token_flags);

#endif
