// Rows of raw frames to the maps that the stem reads: four channels a pixel, resized on the way where needed.
#include "simd.h"

namespace stdc {
namespace {

typedef float F4 __attribute__((vector_size(16)));
typedef float F4u __attribute__((vector_size(16), aligned(4), may_alias));

STDC_INLINE void put4(float* p, F4 v) { *reinterpret_cast<F4u*>(p) = v; }
STDC_INLINE void put4(bf16* p, F4 v) {
  typedef uint32_t U4 __attribute__((vector_size(16)));
  typedef uint16_t H4 __attribute__((vector_size(8)));
  const U4 u = reinterpret_cast<U4>(v);  // pixels: never NaN
  const H4 h = __builtin_convertvector((u + 0x7fffu + ((u >> 16) & 1u)) >> 16, H4);
  memcpy(p, &h, 8);
}

template <class T>
void row(const FrameRow& a) {
  T* out = static_cast<T*>(a.out);
  if (!a.columns) {
    // Pixels less whole numbers are whole numbers of at most eight bits: exact in bf16.
    for (int64_t x = 0; x < a.pixels; x++) {
      const uint8_t* p = a.top + 3 * x;
      const F4 v = {p[0] - a.near[0], p[1] - a.near[1], p[2] - a.near[2], 0};
      put4(out + 4 * x, v);
    }
    return;
  }
  // Between the two rows, then between neighbours.
  float* mixed = a.scratch;
  const float w = a.weight;
  for (int64_t i = 0; i < 3 * a.source; i++) {
    const float top = a.top[i], bottom = a.bottom[i];
    mixed[i] = top + w * (bottom - top);
  }
  for (int64_t i = 3 * a.source; i < 3 * a.source + 4; i++) mixed[i] = 0;
  const F4 near = {a.near[0], a.near[1], a.near[2], 0};
  for (int64_t x = 0; x < a.pixels; x++) {
    const float* p = mixed + 3 * static_cast<int64_t>(a.columns[x]);
    const float* q = p + (a.columns[x] + 1 < a.source ? 3 : 0);
    const F4 left = *reinterpret_cast<const F4u*>(p), right = *reinterpret_cast<const F4u*>(q);
    F4 v = left + a.weights[x] * (right - left) - near;
    v[3] = 0;
    put4(out + 4 * x, v);
  }
}

}  // namespace

void STDC_FN(frame_f32)(const FrameRow& a) { row<float>(a); }
void STDC_FN(frame_bf16)(const FrameRow& a) { row<bf16>(a); }

}  // namespace stdc
