// SPDX-License-Identifier: MIT
// add         y = a + b
// relu2_mul   y = (relu(gate) * relu(gate)) * up
// silu_mul    y = (gate / (1 + exp(-gate))) * up
// y may be one of the operands.
//
// Grid     (ceil(width / 256), tokens) threadgroups of 256 threads, an element a thread.
// Traffic  8 bytes in, 4 out an element.
// Roofline memory: 12 bytes against at most 25 instructions.
#include "numerics.h"

struct elementwise_params {
  uint width;
};

kernel void add(constant elementwise_params &params [[buffer(0)]],
                device float *y [[buffer(1)]],
                device const float *a [[buffer(2)]],
                device const float *b [[buffer(3)]],
                uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const ulong i = ulong(at.y) * params.width + at.x;
  y[i] = a[i] + b[i];
}

kernel void relu2_mul(constant elementwise_params &params [[buffer(0)]],
                      device float *y [[buffer(1)]],
                      device const float *gate [[buffer(2)]],
                      device const float *up [[buffer(3)]],
                      uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const ulong i = ulong(at.y) * params.width + at.x;
  float g = 0.0f > gate[i] ? 0.0f : gate[i];
  float square = g * g;
  y[i] = square * up[i];
}

kernel void silu_mul(constant elementwise_params &params [[buffer(0)]],
                     device float *y [[buffer(1)]],
                     device const float *gate [[buffer(2)]],
                     device const float *up [[buffer(3)]],
                     uint2 at [[thread_position_in_grid]]) {
  if (at.x >= params.width)
    return;
  const ulong i = ulong(at.y) * params.width + at.x;
  float g = gate[i];
  float activated = g / (1.0f + exp_f32(-g));
  y[i] = activated * up[i];
}
