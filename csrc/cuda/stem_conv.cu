// The first convolution and the one after it, both 3x3 stride 2, in one kernel. A block computes what its tile needs of
// the map between, with its halo, into shared memory. Compiled once a type.
#include "epilogue.cuh"
#include "launch.cuh"
#include "forms.h"
#include "stem.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kMiddle = 32;                   // channels of the map between, at most
constexpr int kPitch = kMiddle * 2 + 16;      // bytes from pixel to pixel of it
constexpr int kStemBytes = kStemUnits * kMiddle * 32;  // of weights, and kConvBytes
template <class F>
constexpr int kConvBytes = kMiddle / 16 * 9 * F::kChannels * 32;

struct Params {
  StemConvArgs a;
  Divisor width, between, patch;  // pixels of a row of the tile, of the map between, of the image's
  int tiles_x, tiles, blocks, aligned;
  int rows, columns;              // of the whole map between
  uint32_t patch_at, between_at;
};

// Of a lane's channels, on their way before other kernels are waited for.
template <class F>
struct Bias {
  float of[F::kN][2];

  STDC_DEVICE Bias(const float* bias, int first, int outputs) {
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j)
      STDC_UNROLL
      for (int k = 0; k < 2; ++k) {
        const int channel = first + channel_of<F>(j) + k;
        of[j][k] = channel < outputs ? load_early(bias + channel) : 0;
      }
  }
  STDC_DEVICE void add(Sums<F>& sums, int act) const {
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int j = 0; j < F::kN; ++j)
        STDC_UNROLL
        for (int k = 0; k < 4; ++k) {
          const float v = sums.c[i][j][k] + of[j][k % 2];
          sums.c[i][j][k] = act == kRelu && v < 0 ? 0 : v;
        }
  }
};

// Where a pixel of the map between lies: even columns of a row before the odd ones, so that neighbours of the tile,
// which are two columns apart, are in different banks.
STDC_DEVICE uint32_t between_place(const Params& p, int y, int x) {
  return p.between_at + (y * p.between.by + (x & 1) * (p.between.by + 1) / 2 + x / 2) * kPitch;
}

// What the tile needs of the map between, from pixel (row, column) of it on; outside of it zeros. S: sixteen pixels a
// warp.
template <class T, class S>
STDC_DEVICE void compute_between(const Params& p, int row, int column, const Bias<S>& bias) {
  const int pixels = (2 * p.a.tiling.height + 1) * p.between.by;
  Fragments<S> f[kStemUnits];
  STDC_UNROLL
  for (int i = 0; i < kStemUnits; ++i)
    STDC_UNROLL
    for (int j = 0; j < S::kN / 2; ++j)
      f[i].b[j] = shared_load<Vec>(i * kMiddle * 32 + lane_weights<S>() + j * kUnitBytes);
  STDC_ROLLED
  for (int first = warp_id() * 16; first < pixels; first += S::kPixels) {
    int m = first + lane_id() % 16;
    if (m >= pixels) m = 0;
    const int y = divide(m, p.between), x = m - y * p.between.by;
    const uint32_t from = p.patch_at + (2 * y * p.patch.by + 2 * x) * 8 + lane_id() / 16 * 16;
    Sums<S> sums;
    clear(sums);
    // NOTE: the fourth pixel of a row of taps has zero weights; what is no number there reaches one pixel too far.
    STDC_UNROLL
    for (int i = 0; i < kStemUnits; ++i) {
      ldmatrix_x4(f[i].a[0], from + i * p.patch.by * 8);
      multiply<T>(sums, f[i]);
    }
    bias.add(sums, p.a.act);
    STDC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int n = first + h * 8 + lane_id() / 4, v = divide(n, p.between), u = n - v * p.between.by;
      if (n >= pixels) continue;
      const bool inside = row + v >= 0 && row + v < p.rows && column + u >= 0 && column + u < p.columns;
      const uint32_t to = between_place(p, v, u) + lane_id() % 4 * 4;
      STDC_UNROLL
      for (int j = 0; j < S::kN; ++j)
        shared_store(to + j * 16, inside ? pack<T>(sums.c[0][j][2 * h], sums.c[0][j][2 * h + 1]) : 0u);
    }
  }
}

template <class T, class F>
STDC_KERNEL(F::kThreads, 1)
stem_conv_kernel(const STDC_CONSTANT Params p) {
  using S = CompiledForm<F::kWarps, 1, 1, kMiddle / 8, 1>;
  launch_dependents<kFirst>();
  const StemConvArgs& a = p.a;
  const Index block = block_id();
  const int64_t image = block.x / p.tiles;
  const int spot = block.x - static_cast<int>(image) * p.tiles;
  const int tile_y = spot / p.tiles_x, tile_x = spot - tile_y * p.tiles_x;
  const int row = tile_y * a.tiling.height, column = tile_x * a.tiling.width, first = block.y * F::kChannels;
  TilePlace place{image, row, column, 1, a.tiling.height, a.tiling.width, -1, -1};
  if (a.out_height - row < place.rows) place.rows = a.out_height - row;
  if (a.out_width - column < place.columns) place.columns = a.out_width - column;

  // All weights, which depend on no other kernel; those of the second convolution are waited for later.
  const int units = (a.channels + 15) / 16;
  fetch_weights<F::kThreads, kMiddle>(a.weight, kStemUnits, units, 0, 0);
  cp_async_commit();
  fetch_weights<F::kThreads, F::kChannels>(a.weight2, units * 9, p.blocks, first / 16, kStemBytes);
  cp_async_commit();
  const Bias<S> bias(a.bias, 0, a.channels);
  const Bias<F> bias2(a.bias2, first, a.outputs);
  grid_wait();
  read_patch<T, F::kThreads, 5>(a, p.patch, 4 * a.tiling.height + 3, image, 4 * row - 3, 4 * column - 3, p.patch_at);
  cp_async_wait<1>();
  block_sync();
  compute_between<T, S>(p, 2 * row - 1, 2 * column - 1, bias);
  cp_async_wait<0>();
  block_sync();

  uint32_t pixel[F::kM];
  lane_pixels<F>(pixel, a.tiling.height * a.tiling.width, p.width, 2 * p.between.by * kPitch, kPitch);
  Sums<F> sums;
  clear(sums);
  STDC_ROLLED
  for (int unit = 0; unit < units; ++unit) {
    Fragments<F> f[2];  // one is read while the other is multiplied
    STDC_UNROLL
    for (int tap = 0; tap <= 9; ++tap) {
      if (tap < 9)
        read(f[tap % 2], pixel, between_place(p, tap / 3, tap % 3) + unit * 32,
             kStemBytes + (unit * 9 + tap) * F::kChannels * 32 + lane_weights<F>());
      if (tap > 0) multiply<T>(sums, f[(tap - 1) % 2]);
    }
  }
  launch_dependents<kSummed>();
  bias2.add(sums, a.act2);
  block_sync();
  put_tile<T>(sums, {a.inverse, a.out_negative}, a.type, a.y, place, p.width,
              static_cast<int64_t>(a.out_height) * a.out_width, a.out_width, a.out_pitch, first, a.outputs, p.aligned);
}

template <class F>
Params params(const StemConvArgs& a) {
  const Tiling& t = a.tiling;
  check<F>("stem_conv", t);
  if (a.channels > kMiddle)
    throw std::runtime_error("stem_conv: " + std::to_string(a.channels) + " channels between, at most " +
                             std::to_string(kMiddle));
  Params p{};
  p.a = a;
  p.width = divisor(t.width);
  p.between = divisor(2 * t.width + 1);
  p.patch = divisor(4 * t.width + 4);
  p.tiles_x = rounded_up(a.out_width, t.width);
  p.tiles = p.tiles_x * rounded_up(a.out_height, t.height);
  p.blocks = rounded_up(a.outputs, 16);
  p.aligned = takes_vectors(a.y, a.out_pitch, a.inverse);
  p.rows = rounded_up(a.height, 2);
  p.columns = rounded_up(a.width, 2);
  p.between_at = kStemBytes + kConvBytes<F>;
  p.patch_at = p.between_at + (2 * t.height + 1) * p.between.by * kPitch;
  return p;
}

template <class F>
int bytes(const Params& p) {
  const int loop = p.patch_at + (4 * p.a.tiling.height + 3) * p.patch.by * 8, tile = F::kPixels * kRowBytes<F>;
  return loop > tile ? loop : tile;
}

template <class T, class F>
void launch_form(const StemConvArgs& a, const Stream& stream) {
  const Params p = params<F>(a);
  const Index grid{a.images * p.tiles, rounded_up(a.outputs, F::kChannels), 1};
  launch(stem_conv_kernel<T, F>, "stem_conv", grid, F::kThreads, bytes<F>(p), p, stream);
}

template <class F>
int bytes_of(const StemConvArgs& a) {
  return bytes<F>(params<F>(a));
}

}  // namespace

#define STDC_CASE(index, ...) \
  case index:                 \
    return launch_form<STDC_TYPE, CompiledForm<__VA_ARGS__>>(a, stream);

template <>
void stem_conv_of<STDC_TYPE>(const StemConvArgs& a, const Stream& stream) {
  switch (a.tiling.form) {
    STDC_STEM_CONV_FORMS(STDC_CASE)
    default:
      throw std::runtime_error("stem_conv: no form " + std::to_string(a.tiling.form));
  }
}
#undef STDC_CASE

#define STDC_CASE(index, ...) \
  case index:                 \
    return bytes_of<CompiledForm<__VA_ARGS__>>(a);

template <>
int stem_conv_bytes_of<STDC_TYPE>(const StemConvArgs& a) {
  switch (a.tiling.form) {
    STDC_STEM_CONV_FORMS(STDC_CASE)
    default:
      return 0;
  }
}

}  // namespace gpu
}  // namespace stdc
