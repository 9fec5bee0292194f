// Rows of a depthwise 3x3 stride 2 and of an average pool 3x3 stride 2, both of the same three rows of a map.
#include "simd.h"

namespace stdc {
namespace {

template <class T>
STDC_INLINE void put(void* to, ptrdiff_t at, V v, const Levels* levels, int c, int n) {
  if (levels) return store_levels(static_cast<uint8_t*>(to) + at, v, *levels, c, n);
  T* out = static_cast<T*>(to) + at;
  n == kLanes ? store(out, v) : store_some(out, v, n);
}

template <class T>
STDC_INLINE void pixel(const DownRow& a, int64_t x, int c, int n, V divisor) {
  V sum = {}, acc = n == kLanes ? load(a.bias + c) : load_some(a.bias + c, n);
  STDC_UNROLL for (int i = 0; i < 3; i++) {
    STDC_UNROLL for (int j = 0; j < 3; j++) {
      const T* p = static_cast<const T*>(a.in[i]) + (2 * x + j) * a.in_step + c;
      const float* w = a.weights + (3 * i + j) * a.channels + c;
      const V v = n == kLanes ? load(p) : load_some(p, n);
      acc += v * (n == kLanes ? load(w) : load_some(w, n));
      sum += v;
    }
  }
  put<T>(a.out, x * a.out_step + c, acc, a.levels, c, n);
  if (a.pooled) put<T>(a.pooled, x * a.pooled_step + c, sum * divisor, a.pooled_levels, c, n);
}

template <class T>
void row(const DownRow& a) {
  for (int64_t x = 0; x < a.pixels; x++) {
    int inside = 9;
    if (!a.count_include_pad) inside = a.rows_inside * (3 - (x == 0) - (2 * x + 1 >= a.width));
    const V divisor = splat(1.0f / inside);
    int c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) pixel<T>(a, x, c, kLanes, divisor);
    if (c < a.channels) pixel<T>(a, x, c, a.channels - c, divisor);
  }
}

}  // namespace

void STDC_FN(down_f32)(const DownRow& a) { row<float>(a); }
void STDC_FN(down_bf16)(const DownRow& a) { row<bf16>(a); }

}  // namespace stdc
