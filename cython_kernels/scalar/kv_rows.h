// SPDX-License-Identifier: MIT
// Rows of one head's keys or values, as the KV cache stores them (engine/kv_cache.h).
#ifndef BITNET_EDGE_SCALAR_KV_ROWS_H
#define BITNET_EDGE_SCALAR_KV_ROWS_H

#include "kernels.h"

// Always a compile-time constant in the vector kernels, so that its tests vanish.
typedef enum be_kv_format { BE_KV_F32, BE_KV_F16, BE_KV_I8, BE_KV_I4 } be_kv_format;

// Row j at data + j * row_bytes; its scales, float (int8) or bfloat16 (int4), at scales +
// j * scale_bytes.
typedef struct be_kv_rows {
  const uint8_t *data, *scales;
  size_t row_bytes, scale_bytes;
} be_kv_rows;

static inline be_kv_rows be_kv_rows_of(const void *data, const void *scales, size_t head_dim,
                                       be_kv_format format) {
  size_t groups = (head_dim + BE_KV_GROUP - 1) / BE_KV_GROUP;
  switch (format) {
  case BE_KV_F32:
    return (be_kv_rows){data, scales, head_dim * sizeof(float), 0};
  case BE_KV_F16:
    return (be_kv_rows){data, scales, head_dim * sizeof(uint16_t), 0};
  case BE_KV_I8:
    return (be_kv_rows){data, scales, (head_dim + BE_BLOCK_K - 1) / BE_BLOCK_K * BE_BLOCK_K,
                        sizeof(float)};
  default:
    return (be_kv_rows){data, scales, groups * (BE_KV_GROUP / 2), groups * sizeof(uint16_t)};
  }
}

// The rows from row j on; `scales` may be absent.
static inline be_kv_rows be_kv_rows_from(be_kv_rows rows, size_t j) {
  rows.data += j * rows.row_bytes;
  if (rows.scale_bytes)
    rows.scales += j * rows.scale_bytes;
  return rows;
}

#endif
