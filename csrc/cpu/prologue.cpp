// Rows of what attention does to a map before a convolution reads it: times a vector, plus a vector or a map.
#include "simd.h"

namespace stdc {
namespace {

template <class T>
STDC_INLINE void some(const PrologueRow& a, int64_t x, int c, int n) {
  const bool full = n == kLanes;
  const T* in = static_cast<const T*>(a.in) + x * a.in_step + c;
  V v = full ? load(in) : load_some(in, n);
  if (a.scale) v *= full ? load(a.scale + c) : load_some(a.scale + c, n);
  if (a.add) v += full ? load(a.add + c) : load_some(a.add + c, n);
  if (a.add_map) {
    const T* add = static_cast<const T*>(a.add_map) + x * a.add_step + c;
    v += full ? load(add) : load_some(add, n);
  }
  if (a.levels) return store_levels(static_cast<uint8_t*>(a.out) + x * a.out_step + c, v, *a.levels, c, n);
  T* out = static_cast<T*>(a.out) + x * a.out_step + c;
  full ? store(out, v) : store_some(out, v, n);
}

template <class T>
void row(const PrologueRow& a) {
  for (int64_t x = 0; x < a.pixels; x++) {
    int c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) some<T>(a, x, c, kLanes);
    if (c < a.channels) some<T>(a, x, c, a.channels - c);
  }
}

}  // namespace

void STDC_FN(prologue_f32)(const PrologueRow& a) { row<float>(a); }
void STDC_FN(prologue_bf16)(const PrologueRow& a) { row<bf16>(a); }

}  // namespace stdc
