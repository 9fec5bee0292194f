// A map times a vector plus a vector or a map, where no convolution does it: the ends of blocks, and levels.
#include "epilogue.cuh"
#include "launch.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kThreads = 256;

struct Params {
  PrologueArgs a;
  int vectors;  // of 8 channels, a pixel
  int aligned, add_aligned, out_aligned;
};

template <class T>
STDC_KERNEL(kThreads, 1)
prologue_kernel(const STDC_CONSTANT Params p) {
  launch_dependents<kFirst>();
  const PrologueArgs& a = p.a;
  grid_wait();
  const int64_t image = block_id().y;
  const int64_t i = static_cast<int64_t>(block_id().x) * kThreads + thread_id();
  const int64_t pixel = i / p.vectors;
  if (pixel >= a.area) return;
  const int channel = static_cast<int>(i - pixel * p.vectors) * 8;
  const int count = a.channels - channel < 8 ? a.channels - channel : 8;
  const int64_t place = image * a.area + pixel;
  const T* x = static_cast<const T*>(a.x) + place * a.pitch + channel;
  Vec v = p.aligned && count == 8 ? load(reinterpret_cast<const Vec*>(x)) : load_some(x, count), m{};
  if (a.add_kind == kMap) {
    const T* map = static_cast<const T*>(a.add) + place * a.add_pitch + channel;
    m = p.add_aligned && count == 8 ? load(reinterpret_cast<const Vec*>(map)) : load_some(map, count);
  }
  const float* vector = static_cast<const float*>(a.add) + image * a.add_pitch + channel;
  float found[8];
  STDC_UNROLL
  for (int k = 0; k < 4; ++k) {
    float y[2] = {low_of<T>(v.word[k]), high_of<T>(v.word[k])};
    const float add[2] = {low_of<T>(m.word[k]), high_of<T>(m.word[k])};
    STDC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int c = 2 * k + h;
      if (c >= count) continue;
      if (a.scale != nullptr) y[h] *= load(a.scale + image * a.scale_pitch + channel + c);
      if (a.add_kind == kMap) y[h] += add[h];
      if (a.add_kind == kVector) y[h] += load(vector + c);
    }
    v.word[k] = pack<T>(y[0], y[1]);
    found[2 * k] = y[0];
    found[2 * k + 1] = y[1];
  }
  if (a.inverse != nullptr) {
    store_levels(static_cast<uint8_t*>(a.y) + place * a.out_pitch + channel, found, {a.inverse, a.out_negative},
                 channel, count, p.out_aligned);
    return;
  }
  store_vector(static_cast<T*>(a.y) + place * a.out_pitch + channel, v, count, p.out_aligned);
}

}  // namespace

void prologue(const PrologueArgs& a, const Stream& stream) {
  const Params p{a, (a.channels + 7) / 8, aligned(a.x, a.pitch), aligned(a.add, a.add_pitch),
                 aligned(a.y, a.out_pitch)};
  const int64_t vectors = static_cast<int64_t>(a.area) * p.vectors;
  const Index grid{static_cast<int>((vectors + kThreads - 1) / kThreads), a.images, 1};
  const Kernel<Params> of[kTypes] = {prologue_kernel<half_t>, prologue_kernel<bf16_t>};
  launch(of[a.type], "prologue", grid, kThreads, 0, p, stream);
}

}  // namespace gpu
}  // namespace stdc
