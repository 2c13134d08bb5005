// SPDX-License-Identifier: MIT
// Cutting text into words: hand-written matchers of the three regexes in use.
//
// Each call matches once, at the start of the text: alternatives in their order, runs as long as
// possible. None of the regexes looks behind, so a word depends on the text after its start alone.
// No text makes any character be read more than a fixed number of times.
//
//   GPT2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   LLAMA3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//            ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   QWEN2   as LLAMA3, with \p{N} in place of \p{N}{1,3}
#include "tokenizer_internal.h"
#include "unicode_classes.h"

typedef struct be_text {
  const uint8_t *at;
  const uint8_t *end;
} be_text;

// True, and steps over it, when the next character is of the class.
static inline bool skip_one(be_text *text, be_class class) {
  if (text->at == text->end) {
    return false;
  }
  unsigned size;
  if (be_class_of(be_utf8_decode(text->at, &size)) != class) {
    return false;
  }
  text->at += size;
  return true;
}

static inline bool skip_run(be_text *text, be_class class) {
  const uint8_t *start = text->at;
  while (skip_one(text, class)) {
  }
  return text->at != start;
}

static inline bool is_newline(uint8_t byte) { return byte == '\n' || byte == '\r'; }

static void skip_newlines(be_text *text) {
  while (text->at != text->end && is_newline(*text->at)) {
    text->at++;
  }
}

// The bytes of 's|'t|'re|'ve|'m|'ll|'d at the start of the text, or 0. Without regard to case, the
// long s (U+017F) is an s too.
static size_t contraction(be_text text, bool any_case) {
  const size_t n = (size_t)(text.end - text.at);
  const uint8_t fold = any_case ? 0x20 : 0;
  if (n < 2 || text.at[0] != '\'') {
    return 0;
  }
  const uint8_t first = text.at[1] | fold;
  if (first == 's' || first == 't' || first == 'm' || first == 'd') {
    return 2;
  }
  if (n < 3) {
    return 0;
  }
  if (any_case && text.at[1] == 0xc5 && text.at[2] == 0xbf) {
    return 3;
  }
  const uint8_t second = text.at[2] | fold;
  const bool found =
      (second == 'e' && (first == 'r' || first == 'v')) || (second == 'l' && first == 'l');
  return found ? 3 : 0;
}

// \s+(?!\S)|\s+ on a run of white space: all of it at the end of the text, otherwise all but its
// last character, which is left to the next word, unless it is the only one.
static const uint8_t *match_space(be_text text) {
  const uint8_t *start = text.at, *last = start;
  for (const uint8_t *at = start; skip_one(&text, BE_CLASS_SPACE); at = text.at) {
    last = at;
  }
  return text.at == text.end || last == start ? text.at : last;
}

static const uint8_t *match_gpt2(be_text text) {
  const size_t size = contraction(text, false);
  if (size > 0) {
    return text.at + size;
  }
  be_text word = text;
  if (*word.at == ' ') {
    word.at++;
  }
  if (skip_run(&word, BE_CLASS_LETTER) || skip_run(&word, BE_CLASS_NUMBER) ||
      skip_run(&word, BE_CLASS_OTHER)) {
    return word.at;
  }
  return match_space(text);
}

// \s*[\r\n]+|\s+(?!\S)|\s+: up to the last newline of the run, if it has one.
static const uint8_t *match_space_or_lines(be_text text) {
  be_text run = text;
  skip_run(&run, BE_CLASS_SPACE);
  for (const uint8_t *at = run.at; at != text.at; at--) {
    if (is_newline(at[-1])) {
      return at;
    }
  }
  return match_space(text);
}

static const uint8_t *match_llama3(be_text text, unsigned digits) {
  const size_t size = contraction(text, true);
  if (size > 0) {
    return text.at + size;
  }
  be_text word = text;
  if (skip_run(&word, BE_CLASS_LETTER)) {
    return word.at;
  }
  for (unsigned i = 0; i < digits && skip_one(&word, BE_CLASS_NUMBER); i++) {
  }
  if (word.at != text.at) {
    return word.at;
  }
  // One character that is no letter, number or newline may lead a run of letters.
  unsigned lead;
  be_utf8_decode(word.at, &lead);
  if (!is_newline(*word.at)) {
    word.at += lead;
    if (skip_run(&word, BE_CLASS_LETTER)) {
      return word.at;
    }
  }
  word.at = text.at + (*text.at == ' ');
  if (skip_run(&word, BE_CLASS_OTHER)) {
    skip_newlines(&word);
    return word.at;
  }
  return match_space_or_lines(text);
}

size_t be_next_word(be_pretokenizer pretokenizer, const uint8_t *text, size_t n) {
  const be_text all = {text, text + n};
  const uint8_t *end = NULL;
  switch (pretokenizer) {
  case BE_PRETOKENIZER_GPT2:
    end = match_gpt2(all);
    break;
  case BE_PRETOKENIZER_LLAMA3:
    end = match_llama3(all, 3);
    break;
  case BE_PRETOKENIZER_QWEN2:
    end = match_llama3(all, 1);
    break;
  }
  return (size_t)(end - text);
}
