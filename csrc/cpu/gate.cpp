// Matrix-vector products of pooled vectors, with bias and activation.
#include <math.h>

#include "simd.h"

namespace stdc {
namespace {

STDC_INLINE float activate(float x, int act) {
  switch (act) {
    case kRelu:
      return x < 0 ? 0 : x;
    case kSigmoid:
      return 1 / (1 + expf(-x));
    case kSigmoidPlus1:
      return 1 / (1 + expf(-x)) + 1;
    default:
      return x;
  }
}

}  // namespace

void STDC_FN(gate_f32)(const GateLayer& a) {
  for (int o = 0; o < a.outputs; o++) {
    const float* w = a.weights + static_cast<ptrdiff_t>(o) * a.inputs;
    V acc[2] = {};
    int i = 0;
    for (; i + 2 * kLanes <= a.inputs; i += 2 * kLanes) {
      acc[0] += load(w + i) * load(a.in + i);
      acc[1] += load(w + i + kLanes) * load(a.in + i + kLanes);
    }
    acc[0] += acc[1];
    float sum = a.bias ? a.bias[o] : 0;
    for (int l = 0; l < kLanes; l++) sum += acc[0][l];
    for (; i < a.inputs; i++) sum += w[i] * a.in[i];
    a.out[o] = activate(sum, a.act);
  }
}

}  // namespace stdc
