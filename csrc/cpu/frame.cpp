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

// Pixels less whole numbers are whole numbers of at most eight bits: exact in bf16.
template <class T>
STDC_INLINE void as_they_are(const FrameRow& a, T* out) {
  constexpr int kRun = 64;
  V near;
  for (int i = 0; i < kLanes; i++) near[i] = i % 4 < 3 ? a.near[i % 4] : 0;
  for (int64_t first = 0; first < a.pixels; first += kRun) {
    const int count = a.pixels - first < kRun ? static_cast<int>(a.pixels - first) : kRun;
    const uint8_t* p = a.top + 3 * first;
    // Four bytes a pixel, of which the last is zero. There may be no fourth byte after the last pixel.
    uint8_t bytes[4 * kRun] = {};
    const int whole = first + count == a.pixels ? count - 1 : count;
    for (int i = 0; i < whole; i++) memcpy(bytes + 4 * i, p + 3 * i, 4);
    if (whole < count) memcpy(bytes + 4 * whole, p + 3 * whole, 3);
    for (int i = 3; i < 4 * kRun; i += 4) bytes[i] = 0;
    int i = 0;
    for (; i + kLanes <= 4 * count; i += kLanes) store(out + 4 * first + i, load(bytes + i) - near);
    if (i < 4 * count) store_some(out + 4 * first + i, load(bytes + i) - near, 4 * count - i);
  }
}

template <class T>
void row(const FrameRow& a) {
  T* out = static_cast<T*>(a.out);
  if (!a.columns) return as_they_are(a, out);
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
