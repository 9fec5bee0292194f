// The first convolution, 3x3 stride 2, from raw frames of any size or from normalised images. Compiled once a type.
#include "epilogue.cuh"
#include "launch.cuh"
#include "forms.h"

namespace stdc {
namespace gpu {
namespace {

struct Params {
  StemArgs a;
  Divisor width, patch_width;
  int tiles_x, tiles, blocks, aligned;
};

constexpr int kRows = 3;  // units of 16: a row of taps, of four pixels and colours, of which the last are zero

// A pixel as the network sees it, less the offset.
template <class Number>
STDC_DEVICE void read_pixel(const StemArgs& a, const Number* image, int y, int x, float (&rgb)[3]) {
  if (a.frame_height == a.height && a.frame_width == a.width) {
    const Number* p = image + (y * a.width + x) * 3;
    STDC_UNROLL
    for (int i = 0; i < 3; ++i) rgb[i] = static_cast<float>(load(p + i)) - a.offset[i];
    return;
  }
  const float fy = y * a.scale_y, fx = x * a.scale_x;
  const int y0 = static_cast<int>(fy), x0 = static_cast<int>(fx);
  const int y1 = y0 + 1 < a.frame_height ? y0 + 1 : a.frame_height - 1;
  const int x1 = x0 + 1 < a.frame_width ? x0 + 1 : a.frame_width - 1;
  const float down = fy - y0, right = fx - x0;
  STDC_UNROLL
  for (int i = 0; i < 3; ++i) {
    const float a0 = static_cast<float>(load(image + (y0 * a.frame_width + x0) * 3 + i));
    const float a1 = static_cast<float>(load(image + (y0 * a.frame_width + x1) * 3 + i));
    const float b0 = static_cast<float>(load(image + (y1 * a.frame_width + x0) * 3 + i));
    const float b1 = static_cast<float>(load(image + (y1 * a.frame_width + x1) * 3 + i));
    const float top = a0 * (1 - right) + a1 * right, low = b0 * (1 - right) + b1 * right;
    rgb[i] = top * (1 - down) + low * down - a.offset[i];
  }
}

// The tile's pixels and those around, of four colours, the last zero.
template <class T, class F, class Number>
STDC_DEVICE void read_patch(const Params& p, int64_t image, int row, int column, uint32_t at) {
  const StemArgs& a = p.a;
  const Number* from = static_cast<const Number*>(a.image) + image * a.frame_height * a.frame_width * 3;
  const int pixels = (2 * a.tiling.height + 1) * p.patch_width.by;
  constexpr int kTogether = 4;  // pixels of a thread that are on their way at once
  STDC_ROLLED
  for (int first = thread_id(); first < pixels; first += kTogether * F::kThreads) {
    float rgb[kTogether][3];
    STDC_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      const int i = first + k * F::kThreads, py = divide(i, p.patch_width), y = row + py;
      const int x = column + i - py * p.patch_width.by;
      STDC_UNROLL
      for (int c = 0; c < 3; ++c) rgb[k][c] = a.outside[c];
      if (i < pixels && y >= 0 && y < a.height && x >= 0 && x < a.width) read_pixel(a, from, y, x, rgb[k]);
    }
    STDC_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      const int i = first + k * F::kThreads;
      if (i >= pixels) continue;
      shared_store(at + i * 8, pack<T>(rgb[k][0], rgb[k][1]));
      shared_store(at + i * 8 + 4, pack<T>(rgb[k][2], 0));
    }
  }
}

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
  constexpr int kVectors = F::kChannels * 2;
  const int first_block = block.y * (F::kChannels / 16);
  const char* weight = static_cast<const char*>(a.weight);
  STDC_ROLLED
  for (int v = thread_id(); v < kRows * kVectors; v += F::kThreads) {
    const int unit = v / kVectors, of_block = first_block + v % kVectors / 32;
    const bool exists = of_block < p.blocks;
    const char* from = weight + (unit * p.blocks + of_block) * kUnitBytes + v % 32 * 16;
    cp_async(v * 16, exists ? from : weight, exists ? 16 : 0);
  }
  cp_async_commit();
  grid_wait();
  const uint32_t patch = kRows * kVectors * 16;
  if (a.is_float)
    read_patch<T, F, float>(p, image, 2 * row - 1, 2 * column - 1, patch);
  else
    read_patch<T, F, uint8_t>(p, image, 2 * row - 1, 2 * column - 1, patch);
  cp_async_wait<0>();
  block_sync();

  uint32_t pixel[F::kM];
  lane_pixels<F>(pixel, a.tiling.height * a.tiling.width, p.width, p.patch_width.by * 16, 16);
  Sums<F> sums;
  clear(sums);
  // NOTE: the fourth pixel of a row of taps has zero weights; what is no number there reaches one pixel too far.
  STDC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    Fragments<F> f;
    read(f, pixel, patch + i * p.patch_width.by * 8, i * kVectors * 16 + lane_weights<F>());
    multiply<T>(sums, f);
  }

  launch_dependents<kSummed>();
  const int first = block.y * F::kChannels;
  finish(sums, a.bias, first, a.outputs, a.act);
  block_sync();
  stage_tile<T>(sums);
  block_sync();
  store_tile<T, F>(static_cast<T*>(a.y), place, p.width, static_cast<int64_t>(a.out_height) * a.out_width, a.out_width,
                   a.out_pitch, first, a.outputs, p.aligned);
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
  p.aligned = aligned(a.y, a.out_pitch);
  return p;
}

template <class F>
int bytes_of(const StemArgs& a) {
  check<F>("stem", a.tiling);
  const int loop = kRows * F::kChannels * 32 + (2 * a.tiling.height + 1) * (2 * a.tiling.width + 2) * 8;
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
