// The 1x1 classifier on a tile of the head's map, which is not written then: each block has the products of its
// channels, and the last of a tile's blocks adds them up, in the order of the channels.
#pragma once

#include "epilogue.cuh"

namespace stdc {
namespace gpu {

constexpr int kClasses = 32;  // at most

// Of a form: blocks of 16 pixels for each warp, with all classes.
template <class F>
constexpr bool kClassifies = F::kPixels / 16 % F::kWarps == 0;
template <class F>
constexpr int kClassifierBytes = F::kChannels * kClasses * 2;  // of the weights of a block's channels

// Starts the copies of the weights of channels from `first` on.
template <class F>
STDC_DEVICE void fetch_classifier(const ConvArgs& a, int first, uint32_t at) {
  const int blocks = (a.classes + 15) / 16;
  const char* weight = static_cast<const char*>(a.classifier) + first / 16 * blocks * kUnitBytes;
  fetch_weights<F::kThreads, kClasses>(weight, F::kChannels / 16, blocks, 0, at);
}

// The tile lies in shared memory, as stage_tile leaves it. tile: its number.
template <class T, class F>
STDC_DEVICE void classify(const ConvArgs& a, const TilePlace& place, const Divisor& width, int tile, uint32_t at) {
  if constexpr (kClassifies<F>) {
    using C = CompiledForm<F::kWarps, 1, F::kPixels / 16 / F::kWarps, kClasses / 8, 1>;
    uint32_t pixel[C::kM];
    STDC_UNROLL
    for (int i = 0; i < C::kM; ++i)
      pixel[i] = ((warp_id() * C::kM + i) * 16 + lane_id() % 16) * kRowBytes<F> + lane_id() / 16 * 16;
    Sums<C> logits;
    clear(logits);
    STDC_UNROLL
    for (int unit = 0; unit < F::kChannels / 16; ++unit) {
      Fragments<C> f;
      read(f, pixel, unit * 32, at + unit * kClasses * 32 + lane_weights<C>());
      multiply<T>(logits, f);
    }
    const int parts = grid_size().y;
    // NOTE: add_up has a barrier before it writes where the tile is.
    if (parts > 1 && !add_up(logits, a.workspace, a.arrivals, tile, parts, block_id().y)) return;
    finish(logits, a.classifier_bias, 0, a.classes, kNone);
    store_planes(logits, a.logits, place, width, static_cast<int64_t>(a.out_height) * a.out_width, a.out_width,
                 a.classes, 0, a.classes);
  }
}

}  // namespace gpu
}  // namespace stdc
