// SPDX-License-Identifier: MIT
// One row of one head for the int4 cache, see scalar/quantize_kv.h for the arithmetic.
//
//   codes   16 bytes a group: byte i holds element i in its low and element i + 16 in its high four
//           bits, as code + 8; elements past the end have code 0
//   scales  one bfloat16 a group
#include "kernels.h"
#include "scalar/quantize_kv.h"

void quantize_kv_i4_scalar(uint8_t *codes, uint16_t *scales, const float *x, size_t head_dim) {
  for (size_t first = 0; first < head_dim; first += BE_KV_GROUP, codes += BE_KV_GROUP / 2) {
    size_t n = head_dim - first < BE_KV_GROUP ? head_dim - first : BE_KV_GROUP;
    float low = 0.0f, high = 0.0f;
    for (size_t i = 0; i < n; i++) {
      low = x[first + i] < low ? x[first + i] : low;
      high = x[first + i] > high ? x[first + i] : high;
    }
    uint16_t scale = be_kv_i4_scale(low, high);
    float inverse = 1.0f / be_bf16_to_f32(scale);
    uint8_t code[BE_KV_GROUP];
    for (size_t i = 0; i < BE_KV_GROUP; i++)
      code[i] = i < n ? be_kv_i4_code(x[first + i], inverse) : 8;
    for (size_t i = 0; i < BE_KV_GROUP / 2; i++)
      codes[i] = (uint8_t)(code[i] | code[i + BE_KV_GROUP / 2] << 4);
    scales[first / BE_KV_GROUP] = scale;
  }
}
