// SPDX-License-Identifier: MIT
#include "kv_cache.h"

#include <string.h>

#include "program.h"

be_kv_layout be_kv_layout_of(uint32_t dtype, uint32_t head_dim, uint32_t positions) {
  if (dtype == BE_F32 || dtype == BE_F16) {
    uint64_t row_bytes = (uint64_t)head_dim * be_dtype_bytes(dtype);
    return (be_kv_layout){row_bytes, 0, positions * row_bytes, positions * row_bytes};
  }
  uint64_t groups = be_round_up(head_dim, BE_KV_GROUP) / BE_KV_GROUP;
  be_kv_layout layout = {be_round_up(head_dim, BE_BLOCK_K), sizeof(float), 0, 0};
  if (dtype == BE_I4)
    layout = (be_kv_layout){groups * (BE_KV_GROUP / 2), groups * sizeof(uint16_t), 0, 0};
  layout.scales_at = be_round_up(positions * layout.row_bytes, BE_OPERAND_ALIGNMENT);
  layout.head_bytes =
      layout.scales_at + be_round_up(positions * layout.scale_bytes, BE_OPERAND_ALIGNMENT);
  return layout;
}

uint64_t be_kv_window_rows(uint32_t window, uint32_t sinks, uint32_t max_tokens) {
  uint64_t seen = (uint64_t)sinks + window; // positions from which on a token misses some
  return sinks + be_round_up(seen + max_tokens - 1, BE_BLOCK_KEYS);
}

uint64_t be_kv_cache_bytes(uint32_t dtype, uint32_t kv_heads, uint32_t head_dim,
                           uint32_t positions) {
  return kv_heads * be_kv_layout_of(dtype, head_dim, positions).head_bytes;
}

void be_kv_append(const be_kernels *kernels, uint32_t dtype, const be_kv_layout *layout,
                  uint8_t *head, size_t row, const float *x, size_t head_dim) {
  uint8_t *at = head + row * layout->row_bytes;
  uint8_t *scales = head + layout->scales_at + row * layout->scale_bytes;
  if (dtype == BE_F32) {
    memcpy(at, x, head_dim * sizeof *x);
  } else if (dtype == BE_F16) {
    kernels->f32_to_f16((uint16_t *)at, x, head_dim);
  } else if (dtype == BE_I8) {
    float inverse;
    int32_t sum;
    kernels->quantize_i8((int8_t *)at, &inverse, &sum, x, head_dim);
    *(float *)scales = 1.0f / inverse;
  } else {
    kernels->quantize_kv_i4(at, (uint16_t *)scales, x, head_dim);
  }
}

be_kv_segment be_kv_segment_of(const be_kv_layout *layout, const uint8_t *k_head,
                               const uint8_t *v_head, size_t row, size_t first, size_t end,
                               const float *q) {
  uint64_t at = row * layout->row_bytes, scales = layout->scales_at + row * layout->scale_bytes;
  return (be_kv_segment){.k = k_head + at,
                         .v = v_head + at,
                         .k_scales = k_head + scales,
                         .v_scales = v_head + scales,
                         .first = first,
                         .end = end,
                         .window = SIZE_MAX,
                         .q = q};
}

void be_kv_attend(const be_kernels *kernels, uint32_t dtype, const be_attention *a) {
  if (dtype == BE_F32)
    kernels->attention_f32(a);
  else if (dtype == BE_F16)
    kernels->attention_f16(a);
  else if (dtype == BE_I8)
    kernels->attention_i8(a);
  else
    kernels->attention_i4(a);
}
