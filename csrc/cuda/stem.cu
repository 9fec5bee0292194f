// The first convolution, 3x3 stride 2, from raw frames of any size or from normalised images. Compiled once a type.
#include "epilogue.cuh"
#include "launch.cuh"
#include "forms.h"
#include "stem.cuh"

namespace stdc {
namespace gpu {
namespace {

struct Params {
  StemArgs a;
  Divisor width, patch_width;
  int tiles_x, tiles, blocks, aligned;
};

template <class T, class F>
STDC_KERNEL(F::kThreads, 1)
stem_kernel(const STDC_CONSTANT Params p) {
  launch_dependents<kFirst>();
  const StemArgs& a = p.a;
  const Index block = block_id();
  const int64_t image = block.x / p.tiles;
  const int spot = block.x - static_cast<int>(image) * p.tiles;
  const int tile_y = spot / p.tiles_x, tile_x = spot - tile_y * p.tiles_x;
  const int row = tile_y * a.tiling.height, column = tile_x * a.tiling.width;
  TilePlace place{image, row, column, 1, a.tiling.height, a.tiling.width, -1, -1};
  if (a.out_height - row < place.rows) place.rows = a.out_height - row;
  if (a.out_width - column < place.columns) place.columns = a.out_width - column;

  // All weights, which depend on no other kernel.
  fetch_weights<F::kThreads, F::kChannels>(a.weight, kStemUnits, p.blocks, block.y * (F::kChannels / 16), 0);
  cp_async_commit();
  grid_wait();
  const uint32_t patch = kStemUnits * F::kChannels * 32;
  read_patch<T, F::kThreads, 4>(a, p.patch_width, 2 * a.tiling.height + 1, image, 2 * row - 1, 2 * column - 1, patch);
  cp_async_wait<0>();
  block_sync();

  uint32_t pixel[F::kM];
  lane_pixels<F>(pixel, a.tiling.height * a.tiling.width, p.width, p.patch_width.by * 16, 16);
  Sums<F> sums;
  clear(sums);
  // NOTE: the fourth pixel of a row of taps has zero weights; what is no number there reaches one pixel too far.
  STDC_UNROLL
  for (int i = 0; i < kStemUnits; ++i) {
    Fragments<F> f;
    read(f, pixel, patch + i * p.patch_width.by * 8, i * F::kChannels * 32 + lane_weights<F>());
    multiply<T>(sums, f);
  }

  launch_dependents<kSummed>();
  const int first = block.y * F::kChannels;
  finish(sums, a.bias, first, a.outputs, a.act);
  block_sync();
  put_tile<T>(sums, {a.inverse, a.out_negative}, a.type, a.y, place, p.width,
              static_cast<int64_t>(a.out_height) * a.out_width, a.out_width, a.out_pitch, first, a.outputs, p.aligned);
}

Params params(const StemArgs& a) {
  const Tiling& t = a.tiling;
  Params p{};
  p.a = a;
  p.width = divisor(t.width);
  p.patch_width = divisor(2 * t.width + 2);
  p.tiles_x = rounded_up(a.out_width, t.width);
  p.tiles = p.tiles_x * rounded_up(a.out_height, t.height);
  p.blocks = rounded_up(a.outputs, 16);
  p.aligned = takes_vectors(a.y, a.out_pitch, a.inverse);
  return p;
}

template <class F>
int bytes_of(const StemArgs& a) {
  check<F>("stem", a.tiling);
  const int loop = kStemUnits * F::kChannels * 32 + (2 * a.tiling.height + 1) * (2 * a.tiling.width + 2) * 8;
  const int tile = F::kPixels * kRowBytes<F>;
  return loop > tile ? loop : tile;
}

template <class T, class F>
void launch_form(const StemArgs& a, const Stream& stream) {
  const int shared = bytes_of<F>(a);
  const Params p = params(a);
  const Index grid{a.images * p.tiles, rounded_up(a.outputs, F::kChannels), 1};
  launch(stem_kernel<T, F>, "stem", grid, F::kThreads, shared, p, stream);
}

}  // namespace

#define STDC_CASE(index, ...) \
  case index:                 \
    return launch_form<STDC_TYPE, CompiledForm<__VA_ARGS__>>(a, stream);

template <>
void stem_of<STDC_TYPE>(const StemArgs& a, const Stream& stream) {
  switch (a.tiling.form) {
    STDC_STEM_FORMS(STDC_CASE)
    default:
      throw std::runtime_error("stem: no form " + std::to_string(a.tiling.form));
  }
}
#undef STDC_CASE

#define STDC_CASE(index, ...) \
  case index:                 \
    return bytes_of<CompiledForm<__VA_ARGS__>>(a);

template <>
int stem_bytes_of<STDC_TYPE>(const StemArgs& a) {
  switch (a.tiling.form) {
    STDC_STEM_FORMS(STDC_CASE)
    default:
      return 0;
  }
}

}  // namespace gpu
}  // namespace stdc
