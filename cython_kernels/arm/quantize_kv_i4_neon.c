// SPDX-License-Identifier: MIT
// One row of one head for the int4 cache, see scalar/quantize_kv_i4.c.
#include "arm/neon.h"
#include "scalar/quantize_kv.h"

typedef struct group {
  be_f32x16 a, b; // elements 0 .. 15 and 16 .. 31
} group;

// a < m ? a : m, a NaN in `a` ignored.
BE_INLINE float32x4_t lesser4(float32x4_t a, float32x4_t m) {
  return vbslq_f32(vcltq_f32(a, m), a, m);
}

BE_INLINE float32x4_t lesser16(be_f32x16 x, float32x4_t m) {
  return lesser4(x.v3, lesser4(x.v2, lesser4(x.v1, lesser4(x.v0, m))));
}

BE_INLINE float32x4_t greater16(be_f32x16 x, float32x4_t m) {
  return be_greater4(x.v3, be_greater4(x.v2, be_greater4(x.v1, be_greater4(x.v0, m))));
}

// The code plus 8, read from the bits that the magic leaves.
BE_INLINE uint16x4_t code4(float32x4_t x, float32x4_t inverse) {
  float32x4_t v = vmulq_f32(x, inverse);
  v = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v))); // NaN becomes 0
  v = vminq_f32(vmaxq_f32(v, vdupq_n_f32(-8.0f)), vdupq_n_f32(7.0f));
  const float32x4_t magic = vdupq_n_f32(BE_ROUND_MAGIC);
  uint32x4_t code = vsubq_u32(vreinterpretq_u32_f32(vaddq_f32(v, magic)),
                              vsubq_u32(vreinterpretq_u32_f32(magic), vdupq_n_u32(8)));
  return vmovn_u32(code);
}

BE_INLINE uint8x16_t code16(be_f32x16 x, float32x4_t inverse) {
  uint16x8_t low = vcombine_u16(code4(x.v0, inverse), code4(x.v1, inverse));
  uint16x8_t high = vcombine_u16(code4(x.v2, inverse), code4(x.v3, inverse));
  return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
}

BE_INLINE void quantize_group(uint8_t *codes, uint16_t *scale, group x) {
  const float32x4_t zero = vdupq_n_f32(0.0f);
  float32x4_t low = lesser16(x.b, lesser16(x.a, zero));
  float high = be_max4(greater16(x.b, greater16(x.a, zero)));
  *scale = be_kv_i4_scale(-be_max4(vnegq_f32(low)), high);
  const float32x4_t inverse = vdupq_n_f32(1.0f / be_bf16_to_f32(*scale));
  vst1q_u8(codes, vorrq_u8(code16(x.a, inverse), vshlq_n_u8(code16(x.b, inverse), 4)));
}

BE_INLINE group load_group(const float *x) {
  return (group){be_load16(x, 0, BE_FORMAT_F32), be_load16(x, 16, BE_FORMAT_F32)};
}

void quantize_kv_i4_neon(uint8_t *codes, uint16_t *scales, const float *x, size_t head_dim) {
  size_t d = 0;
  for (; d + BE_KV_GROUP <= head_dim; d += BE_KV_GROUP, codes += BE_KV_GROUP / 2)
    quantize_group(codes, scales++, load_group(x + d));
  if (d < head_dim) {
    float padded[BE_KV_GROUP] = {0};
    memcpy(padded, x + d, (head_dim - d) * sizeof *x);
    quantize_group(codes, scales, load_group(padded));
  }
}
