// SPDX-License-Identifier: MIT
// Rotary angles, the same bits on every machine.
#ifndef BITNET_EDGE_ENGINE_ANGLES_H
#define BITNET_EDGE_ENGINE_ANGLES_H

#include <stddef.h>
#include <stdint.h>

// cos[i], sin[i] = scale * cos/sin(a) with a = float(position) * inv_freq[i] rounded to float32
// (as transformers' rotary embedding computes it). Non-finite or huge angles give NaN.
void be_rope_angles(float *cos, float *sin, const float *inv_freq, size_t half, uint32_t position,
                    float scale);

#endif
