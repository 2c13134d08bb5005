// SPDX-License-Identifier: MIT
// Attention, see scalar/attention_tiles.h for the loops: 16 lanes are four registers. 2 queries
// times 2 keys (or times 32 columns) are four sums in 16 of the 32 registers; the 16 of 32-bit NEON
// hold two sums.
#include "kernels.h"

#if BE_ARCH_ARM64 && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns") // moves loads up until sums must go to the stack
#endif

#include "arm/neon.h"
#include "scalar/kv_rows.h"

#define INLINE BE_INLINE
#define NOINLINE BE_NOINLINE
#define UNROLL BE_UNROLL
enum { TILE_QUERIES = 2, TILE_SUMS = BE_ARCH_ARM64 ? 4 : 2 };

typedef be_f32x16 v16;

INLINE v16 zero16(void) { return be_splat16(0); }
INLINE v16 load16(const float *x) { return be_load16(x, 0, BE_FORMAT_F32); }
INLINE void store16(float *y, v16 v) { be_store16(y, v); }
INLINE v16 add16(v16 a, v16 b) { return be_add16(a, b); }
INLINE v16 multiply16(v16 a, v16 b) { return be_multiply16(a, b); }
INLINE v16 add_products(v16 sum, v16 a, v16 b) { return be_add_products(sum, a, b); }
INLINE v16 exp16(v16 x) { return be_exp16(x); }
INLINE float tree(v16 v) { return be_tree(v); }

INLINE v16 splat16(const float *x) {
  float32x4_t v = vld1q_dup_f32(x);
  return (v16){v, v, v, v};
}

INLINE v16 subtract16(v16 a, v16 b) {
  return (v16){vsubq_f32(a.v0, b.v0), vsubq_f32(a.v1, b.v1), vsubq_f32(a.v2, b.v2),
               vsubq_f32(a.v3, b.v3)};
}

INLINE v16 greater16(v16 a, v16 m) {
  return (v16){be_greater4(a.v0, m.v0), be_greater4(a.v1, m.v1), be_greater4(a.v2, m.v2),
               be_greater4(a.v3, m.v3)};
}

INLINE float largest(v16 m) {
  return be_max4(be_greater4(be_greater4(m.v0, m.v1), be_greater4(m.v2, m.v3)));
}

INLINE v16 widen_codes(int8x16_t x) {
  int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
  return (v16){
      vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
      vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}

INLINE v16 load_row(be_kv_rows rows, size_t j, size_t d, const be_kv_format format) {
  const uint8_t *row = rows.data + j * rows.row_bytes;
  if (format == BE_KV_F32 || format == BE_KV_F16)
    return be_load16(row, d, format == BE_KV_F32 ? BE_FORMAT_F32 : BE_FORMAT_F16);
  if (format == BE_KV_I8)
    return widen_codes(vld1q_s8((const int8_t *)row + d));
  uint8x16_t codes = vld1q_u8(row + d / BE_KV_GROUP * (BE_KV_GROUP / 2));
  if (d % BE_KV_GROUP != 0)
    codes = vshrq_n_u8(codes, 4);
  else
    codes = vandq_u8(codes, vdupq_n_u8(15));
  const uint16_t *scales = (const uint16_t *)(const void *)(rows.scales + j * rows.scale_bytes);
  float scale = be_bf16_to_f32(scales[d / BE_KV_GROUP]);
  int8x16_t signed_codes = vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8));
  return be_multiply16(widen_codes(signed_codes), be_splat16(scale));
}

INLINE v16 load_row_end(be_kv_rows rows, size_t j, size_t d, size_t n, const be_kv_format format) {
  return be_load16_partial(rows.data + j * rows.row_bytes, d, n,
                           format == BE_KV_F32 ? BE_FORMAT_F32 : BE_FORMAT_F16);
}

INLINE void store_dots(float *s, const v16 *sums, const size_t queries, const size_t keys) {
  UNROLL for (size_t h = 0; h < queries; h++) {
    UNROLL for (size_t i = 0; i < keys; i++) {
      s[h * BE_BLOCK_KEYS + i] = be_tree(sums[h * keys + i]);
    }
  }
}

#include "scalar/attention_tiles.h"

void attention_f32_neon(const be_attention *a) { attend(a, &loops_F32); }
void attention_f16_neon(const be_attention *a) { attend(a, &loops_F16); }
void attention_i8_neon(const be_attention *a) { attend(a, &loops_I8); }
void attention_i4_neon(const be_attention *a) { attend(a, &loops_I4); }
