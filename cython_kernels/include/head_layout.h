// SPDX-License-Identifier: MIT
// How a quantised head lies in a file, and how far its activations may reach.
//
// Rows are taken in panels of 16, as in P16: every 32-bit lane of a vector holds one row, a panel
// is one sequential stream, panels follow each other. Rows beyond the last are zeros.
//
//   int8   panel = 16 float32 row scales (64 B), then ceil(k / 4) blocks of 64 B
//          byte 4 * row + k % 4 of block k / 4 is the weight: w = byte * scale[row]
//   int4   panel = ceil(k / 64) blocks of 576 B: 2 x 16 float16 scales, one for each row of both
//          groups of 32 columns, then 8 lines of 64 B. Line l holds columns 8l .. 8l + 7, 32 bits
//          for each row; column 8l + c has bits 16 * (c % 2) + 4 * (c / 2) ..+ 3, so that one mask
//          or shift of 16-bit words gives the pairs that multiply-add instructions want.
//          w = (nibble - 8) * scale[column / 32 % 2][row]; columns beyond k are nibbles 8.
#ifndef BITNET_EDGE_HEAD_LAYOUT_H
#define BITNET_EDGE_HEAD_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum {
  BE_HEAD_ROWS = 16, // of a panel
  BE_HEAD_LINE = 64, // bytes of a line: 16 rows x 32 bits
  BE_I8_SCALES = 64, // bytes in front of an int8 panel
  BE_I8_BLOCK_K = 4,
  BE_I4_BLOCK_K = 64,
  BE_I4_BLOCK_BYTES = 576,
  BE_I4_GROUP_K = 32, // columns that share a scale
  BE_I4_LINE_K = 8,
  BE_WIDE_K = 64,         // int16 activations are padded to this with zeros
  BE_HEAD_MAX_K = 1 << 17 // the limit below is then still 127
};

static inline uint64_t be_head_panel_bytes(uint32_t bits, uint64_t k) {
  if (bits == 8)
    return BE_I8_SCALES + (k + BE_I8_BLOCK_K - 1) / BE_I8_BLOCK_K * BE_HEAD_LINE;
  return (k + BE_I4_BLOCK_K - 1) / BE_I4_BLOCK_K * BE_I4_BLOCK_BYTES;
}

static inline uint64_t be_head_bytes(uint32_t bits, uint64_t rows, uint64_t k) {
  return (rows + BE_HEAD_ROWS - 1) / BE_HEAD_ROWS * be_head_panel_bytes(bits, k);
}

// Activations of k columns are rounded to integers -c .. c. Whatever bytes a file holds, a weight
// is at least -128, so |sum of q * w| <= k * c * 128 <= 2^31 - 1: an int32 never overflows.
// (A program that feeds other int16 into a head gets sums modulo 2^32, the same on every ISA.)
static inline int32_t be_head_limit(uint32_t k) {
  uint32_t limit = INT32_MAX / 128 / (k ? k : 1);
  return limit < INT16_MAX ? (int32_t)limit : INT16_MAX;
}

#endif
