// SPDX-License-Identifier: MIT
// Unicode normalization form C (UAX #15), with the character data that the `tokenizers` library
// uses: decompose, put marks in canonical order, compose.
#include <string.h>

#include "tokenizer_internal.h"
#include "unicode_classes.h"

enum {
  HANGUL_SYLLABLE = 0xac00, // arithmetic over leads, vowels and finals (final 0: none)
  HANGUL_LEAD = 0x1100,
  HANGUL_VOWEL = 0x1161,
  HANGUL_FINAL = 0x11a7,
  LEADS = 19,
  VOWELS = 21,
  FINALS = 28,
  SYLLABLES = LEADS * VOWELS * FINALS,
  MAX_TAIL = 4,  // second parts of one code point's decomposition
  SHORT_RUN = 16 // marks in a row that are sorted by insertion
};

// A code point with its combining class in the top byte (0: a starter).
static inline uint32_t marked(uint32_t code) {
  const uint8_t property = be_nfc_property(code);
  return property < BE_NFC_MAYBE ? (uint32_t)property << 24 | code : code;
}
static inline uint32_t class_of(uint32_t point) { return point >> 24; }
static inline uint32_t code_of(uint32_t point) { return point & 0xffffff; }

bool be_nfc_is_inert(const uint8_t *text, size_t n) {
  for (size_t i = 0; i < n;) {
    unsigned size = 1;
    if (text[i] >= 0xcc && be_nfc_property(be_utf8_decode(text + i, &size)) != 0) {
      return false; // below U+0300 (lead bytes below 0xcc) everything is inert
    }
    i += size;
  }
  return true;
}

// The index of the step that decomposes `code`, or be_nfc_step_count.
static uint32_t find_step(uint32_t code) {
  uint32_t low = 0, high = be_nfc_step_count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (be_nfc_step_code[middle] < code) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < be_nfc_step_count && be_nfc_step_code[low] == code ? low : be_nfc_step_count;
}

static size_t decompose_hangul(uint32_t syllable, uint32_t *points) {
  const uint32_t final = syllable % FINALS;
  points[0] = HANGUL_LEAD + syllable / (VOWELS * FINALS);
  points[1] = HANGUL_VOWEL + syllable / FINALS % VOWELS;
  points[2] = HANGUL_FINAL + final;
  return final == 0 ? 2 : 3;
}

// Writes the full decomposition, marked; returns its length, at most 1 + MAX_TAIL.
static size_t decompose(uint32_t code, uint32_t *points) {
  uint32_t tail[MAX_TAIL];
  size_t waiting = 0, count = 0;
  if (code - HANGUL_SYLLABLE < SYLLABLES) {
    return decompose_hangul(code - HANGUL_SYLLABLE, points);
  }
  for (uint32_t step; (step = find_step(code)) != be_nfc_step_count;) {
    if (be_nfc_step_second[step] != 0 && waiting < MAX_TAIL) {
      tail[waiting++] = be_nfc_step_second[step];
    }
    code = be_nfc_step_first[step];
  }
  points[count++] = marked(code);
  while (waiting > 0) {
    points[count++] = marked(tail[--waiting]);
  }
  return count;
}

static void insertion_sort(uint32_t *points, size_t n) {
  for (size_t i = 1; i < n; i++) {
    const uint32_t point = points[i];
    size_t at = i;
    for (; at > 0 && class_of(points[at - 1]) > class_of(point); at--) {
      points[at] = points[at - 1];
    }
    points[at] = point;
  }
}

static void counting_sort(uint32_t *points, size_t n, uint32_t *spare) {
  size_t place[257] = {0};
  for (size_t i = 0; i < n; i++) {
    place[class_of(points[i]) + 1]++;
  }
  for (size_t i = 1; i < 257; i++) {
    place[i] += place[i - 1];
  }
  for (size_t i = 0; i < n; i++) {
    spare[place[class_of(points[i])]++] = points[i];
  }
  memcpy(points, spare, n * sizeof *points);
}

// Sorts each run of marks by class, keeping the order of equals: linear even if all is one run.
static void order_marks(uint32_t *points, size_t n, uint32_t *spare) {
  for (size_t i = 0; i < n;) {
    size_t end = i;
    while (end < n && class_of(points[end]) != 0) {
      end++;
    }
    if (end - i > SHORT_RUN) {
      counting_sort(points + i, end - i, spare);
    } else {
      insertion_sort(points + i, end - i);
    }
    i = end + 1;
  }
}

// The code point that (first, second) compose to, or 0.
static uint32_t compose_pair(uint32_t first, uint32_t second) {
  if (first - HANGUL_LEAD < LEADS && second - HANGUL_VOWEL < VOWELS) {
    const uint32_t lead = first - HANGUL_LEAD, vowel = second - HANGUL_VOWEL;
    return HANGUL_SYLLABLE + (lead * VOWELS + vowel) * FINALS;
  }
  if (first - HANGUL_SYLLABLE < SYLLABLES && (first - HANGUL_SYLLABLE) % FINALS == 0 &&
      second - HANGUL_FINAL - 1 < FINALS - 1) {
    return first + second - HANGUL_FINAL;
  }
  const uint64_t wanted = (uint64_t)first << 32 | second;
  uint32_t low = 0, high = be_nfc_pair_count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2, step = be_nfc_pair_step[middle];
    const uint64_t pair = (uint64_t)be_nfc_step_first[step] << 32 | be_nfc_step_second[step];
    if (pair == wanted) {
      return be_nfc_step_code[step];
    }
    if (pair < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return 0;
}

// Composes in place and returns the new length. A point joins the last starter unless something
// between the two blocks it: a starter, or a mark of the same or a higher class.
static size_t compose(uint32_t *points, size_t n) {
  size_t count = 0;
  uint32_t *starter = NULL;
  for (size_t i = 0; i < n; i++) {
    const uint32_t point = points[i];
    if (starter != NULL &&
        (starter == points + count - 1 || class_of(points[count - 1]) < class_of(point))) {
      const uint32_t composed = compose_pair(code_of(*starter), code_of(point));
      if (composed != 0) {
        *starter = composed; // every composition is a starter
        continue;
      }
    }
    points[count] = point;
    if (class_of(point) == 0) {
      starter = points + count;
    }
    count++;
  }
  return count;
}

static uint8_t *append_utf8(uint8_t *out, uint32_t code) {
  if (code < 0x80) {
    *out++ = (uint8_t)code;
  } else if (code < 0x800) {
    *out++ = (uint8_t)(0xc0 | code >> 6);
    *out++ = (uint8_t)(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    *out++ = (uint8_t)(0xe0 | code >> 12);
    *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    *out++ = (uint8_t)(0x80 | (code & 0x3f));
  } else {
    *out++ = (uint8_t)(0xf0 | code >> 18);
    *out++ = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    *out++ = (uint8_t)(0x80 | (code & 0x3f));
  }
  return out;
}

be_status be_normalize_nfc(const uint8_t *text, size_t n, be_buffer *buffer, size_t *n_out) {
  // No decomposition has more than 3 code points per 2 bytes of UTF-8 (generate_unicode_classes.py
  // checks). The same again is spare room for sorting, rarely touched.
  const size_t most = n + n / 2 + 1;
  const be_status status = be_buffer_reserve(buffer, 2 * most * sizeof(uint32_t));
  if (status != BE_OK) {
    return status;
  }
  uint32_t *points = buffer->data;
  size_t count = 0;
  for (size_t i = 0; i < n;) {
    unsigned size;
    const uint32_t code = be_utf8_decode(text + i, &size);
    if (code < 0xc0) { // the first code point that decomposes
      points[count++] = code;
    } else {
      count += decompose(code, points + count);
    }
    i += size;
  }
  order_marks(points, count, points + most);
  count = compose(points, count);
  // UTF-8 is at most as long as the code points it replaces: written over them, from the front.
  uint8_t *out = buffer->data;
  for (size_t i = 0; i < count; i++) {
    out = append_utf8(out, code_of(points[i]));
  }
  *n_out = (size_t)(out - (uint8_t *)buffer->data);
  return BE_OK;
}
