// SPDX-License-Identifier: MIT
// relu2: y = (relu(gate) * relu(gate)) * up        (So et al., "Primer", 2021)
// silu:  y = (gate / (1 + exp(-gate))) * up        (exp.h; gate = -inf gives NaN, as in torch)
//
// relu is `0 > g ? 0 : g`, so that NaN passes through.
#include "kernels.h"
#include "scalar/exp.h"

void relu2_mul_f32_scalar(float *y, const float *gate, const float *up, size_t n) {
  for (size_t i = 0; i < n; i++) {
    float g = 0.0f > gate[i] ? 0.0f : gate[i];
    y[i] = (g * g) * up[i];
  }
}

void silu_mul_f32_scalar(float *y, const float *gate, const float *up, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] = (gate[i] / (1.0f + be_exp(-gate[i]))) * up[i];
}
