// Rows of the caller's tensors into maps and back: other strides, another dtype.
#include "simd.h"

namespace stdc {
namespace {

template <class S, class D>
void row(const CopyRow& a) {
  const S* in = static_cast<const S*>(a.in);
  D* out = static_cast<D*>(a.out);
  if (a.in_channel == 1 && a.out_channel == 1 && a.channels >= kLanes) {
    for (int64_t x = 0; x < a.pixels; x++) {
      const S* from = in + x * a.in_pixel;
      D* to = out + x * a.out_pixel;
      int c = 0;
      for (; c + kLanes <= a.channels; c += kLanes) store(to + c, load(from + c));
      if (c < a.channels) store_some(to + c, load_some(from + c, a.channels - c), a.channels - c);
      for (c = 0; c < a.spare; c++) put(to + a.channels + c, 0.0f);
    }
    return;
  }
  for (int64_t x = 0; x < a.pixels; x++) {
    D* to = out + x * a.out_pixel;
    for (int c = 0; c < a.channels; c++) put(to + c * a.out_channel, to_float(in[x * a.in_pixel + c * a.in_channel]));
    for (int c = 0; c < a.spare; c++) put(to + (a.channels + c) * a.out_channel, 0.0f);
  }
}

}  // namespace

void STDC_FN(copy_f32_f32)(const CopyRow& a) { row<float, float>(a); }
void STDC_FN(copy_f32_bf16)(const CopyRow& a) { row<float, bf16>(a); }
void STDC_FN(copy_bf16_f32)(const CopyRow& a) { row<bf16, float>(a); }
void STDC_FN(copy_bf16_bf16)(const CopyRow& a) { row<bf16, bf16>(a); }

}  // namespace stdc
