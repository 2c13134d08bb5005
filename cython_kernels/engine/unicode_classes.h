// SPDX-License-Identifier: MIT
// Unicode data of the tokenizer: classes for the pre-tokenizers, properties for NFC.
//
// Both maps are two-stage tables: stage[code / block] is the number of a block of values, blocks of
// equal content are stored once, and code points beyond the first stage have value 0. The data
// (unicode_classes.c) is generated from the behaviour of the `tokenizers` library.
#ifndef BITNET_EDGE_ENGINE_UNICODE_CLASSES_H
#define BITNET_EDGE_ENGINE_UNICODE_CLASSES_H

#include <stdint.h>

typedef enum be_class {
  BE_CLASS_OTHER = 0,
  BE_CLASS_LETTER = 1, // \p{L}
  BE_CLASS_NUMBER = 2, // \p{N}
  BE_CLASS_SPACE = 3   // \s
} be_class;

// Blocks of 256 code points, four to a byte, lowest bits first.
extern const uint32_t be_class_stage_size;
extern const uint8_t be_class_stage[];
extern const uint8_t be_class_blocks[];

static inline be_class be_class_of(uint32_t code) {
  const uint32_t stage = code >> 8;
  if (stage >= be_class_stage_size) {
    return BE_CLASS_OTHER;
  }
  const uint8_t four = be_class_blocks[be_class_stage[stage] * 64u + (code >> 2) % 64];
  return (be_class)(four >> (code & 3) * 2 & 3);
}

// be_nfc_property of a code point:
//   0          inert: a starter that NFC keeps and that joins nothing before it
//   1 .. 253   canonical combining class of a mark
//   MAYBE      a starter that may join the one before it
//   NO         never in NFC text
enum { BE_NFC_MAYBE = 254, BE_NFC_NO = 255 };

// Blocks of 128 code points, one to a byte.
extern const uint32_t be_nfc_stage_size;
extern const uint8_t be_nfc_stage[];
extern const uint8_t be_nfc_blocks[];

static inline uint8_t be_nfc_property(uint32_t code) {
  const uint32_t stage = code >> 7;
  return stage < be_nfc_stage_size ? be_nfc_blocks[be_nfc_stage[stage] * 128u + code % 128] : 0;
}

// One step of canonical decomposition, by ascending code: code -> first, second (0: none). `first`
// may decompose further, `second` never does. Hangul syllables are left to arithmetic.
extern const uint32_t be_nfc_step_count;
extern const uint32_t be_nfc_step_code[];
extern const uint32_t be_nfc_step_first[];
extern const uint32_t be_nfc_step_second[];

// The steps that composition undoes, by ascending (first, second).
extern const uint32_t be_nfc_pair_count;
extern const uint16_t be_nfc_pair_step[];

#endif
