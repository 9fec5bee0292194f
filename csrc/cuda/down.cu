// 1x1 convolution and ReLU, and both that read it, depthwise 3x3 and average pool 3x3, each with stride 2. The map
// between is only in shared memory: a block computes the 2n + 1 rows and columns that n of its outputs read.
// Compiled once a type.
#include "epilogue.cuh"
#include "launch.cuh"
#include "forms.h"

namespace stdc {
namespace gpu {
namespace {

struct Params {
  DownArgs a;
  Source s;
  Divisor width, out_width;
  int tiles_x, tiles, aligned, pooled_aligned;
  int vectors;  // of 8 channels, of a tap's weights
};

// Depthwise convolution and average of what is in shared memory, for eight channels of one output.
template <class T, class F>
STDC_DEVICE void taps(const Params& p, int at, int channel, float (&sum)[8], float (&average)[8]) {
  const Vec* weights = static_cast<const Vec*>(p.a.depthwise) + channel / 8;
  const Vec* bias = reinterpret_cast<const Vec*>(p.a.depthwise_bias) + channel / 4;
  STDC_UNROLL
  for (int k = 0; k < 2; ++k) {
    const Vec b = load_weight(bias + k);
    STDC_UNROLL
    for (int i = 0; i < 4; ++i) {
      sum[4 * k + i] = as_float(b.word[i]);
      average[4 * k + i] = 0;
    }
  }
  STDC_ROLLED  // for registers
  for (int row = 0; row < 3; ++row) {
    STDC_UNROLL
    for (int column = 0; column < 3; ++column) {
      const Vec v = shared_load<Vec>(at + (row * p.width.by + column) * kRowBytes<F>);
      const Vec w = load_weight(weights + (row * 3 + column) * p.vectors);
      STDC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float low = low_of<T>(v.word[i]), high = high_of<T>(v.word[i]);
        sum[2 * i] += low * low_of<T>(w.word[i]);
        sum[2 * i + 1] += high * high_of<T>(w.word[i]);
        average[2 * i] += low;
        average[2 * i + 1] += high;
      }
    }
  }
}

// Eight channels of a pixel to a map of numbers or of levels.
template <class T>
STDC_DEVICE void put_eight(void* y, int64_t place, int pitch, int channel, const float (&x)[8], const Steps& steps,
                           int count, bool aligned) {
  if (steps.inverse != nullptr) {
    store_levels(static_cast<uint8_t*>(y) + place * pitch + channel, x, steps, channel, count, aligned);
    return;
  }
  Vec out;
  STDC_UNROLL
  for (int i = 0; i < 4; ++i) out.word[i] = pack<T>(x[2 * i], x[2 * i + 1]);
  store_vector(static_cast<T*>(y) + place * pitch + channel, out, count, aligned);
}

// X: what is multiplied, T or levels.
template <class X, class T, class F>
STDC_DEVICE void down_block(const Params& p) {
  launch_dependents<kFirst>();
  const DownArgs& a = p.a;
  const Index block = block_id();
  const int64_t image = block.x / p.tiles;
  const int spot = block.x - static_cast<int>(image) * p.tiles;
  const int tile_y = spot / p.tiles_x, tile_x = spot - tile_y * p.tiles_x;
  const int out_height = a.tiling.height / 2, out_row = tile_y * out_height, out_column = tile_x * p.out_width.by;
  Where w;
  w.image = image;
  w.row = 2 * out_row - 1;
  w.column = 2 * out_column - 1;
  w.first = 0;
  w.last = p.s.chunks;
  w.block = block.y * (F::kChannels / 16);
  w.set = 0;

  uint32_t pixel[F::kM];
  lane_pixels<F>(pixel, a.tiling.height * a.tiling.width, p.width, p.width.by * p.s.pixel, p.s.pixel);
  const int first = block.y * F::kChannels;
  Sums<F> sums;
  if constexpr (is_levels<X>::value) {
    LevelSums<F> whole;
    products<X, F, 1>(p.s, w, pixel, whole);
    sums = scaled(whole, a.multipliers, first, a.outputs);
  } else {
    products<T, F, 1>(p.s, w, pixel, sums);
  }
  launch_dependents<kSummed>();

  // As it would be stored, with zeros outside of the image.
  finish(sums, a.bias, first, a.outputs, kRelu);
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int m = pixel_of<F>(i, h), y = divide(m, p.width), x = m - y * p.width.by;
      const bool inside = w.row + y >= 0 && w.row + y < a.height && w.column + x >= 0 && w.column + x < a.width;
      STDC_UNROLL
      for (int j = 0; j < F::kN; ++j)
        STDC_UNROLL
        for (int k = 0; k < 2; ++k)
          if (!inside) sums.c[i][j][2 * h + k] = 0;
    }
  stage_tile<T>(sums);
  block_sync();

  constexpr int kVectors = F::kChannels / 8;
  const int64_t base = image * a.out_height * a.out_width;
  STDC_ROLLED
  for (int v = thread_id(); v < out_height * p.out_width.by * kVectors; v += F::kThreads) {
    const int m = v / kVectors, channel = first + v % kVectors * 8;
    const int y = divide(m, p.out_width), x = m - y * p.out_width.by;
    const int row = out_row + y, column = out_column + x, count = a.outputs - channel;
    if (row >= a.out_height || column >= a.out_width || count <= 0) continue;
    float sum[8], average[8];
    taps<T, F>(p, (2 * y * p.width.by + 2 * x) * kRowBytes<F> + v % kVectors * 16, channel, sum, average);
    const int64_t place = base + row * a.out_width + column;
    put_eight<T>(a.y, place, a.out_pitch, channel, sum, {a.inverse, a.out_negative}, count, p.aligned);
    if (a.pooled == nullptr) continue;
    int divisor = 9;
    if (!a.count_pad) {
      // Row -1 is outside for the first row, row `height` for the last of an odd height.
      const int high = 3 - (row == 0) - (2 * row + 1 >= a.height);
      const int wide = 3 - (column == 0) - (2 * column + 1 >= a.width);
      divisor = high * wide;
    }
    STDC_UNROLL
    for (int i = 0; i < 8; ++i) average[i] /= divisor;
    put_eight<T>(a.pooled, place, a.pooled_pitch, channel, average, {a.pooled_inverse, a.pooled_negative}, count,
                 p.pooled_aligned);
  }
}

template <class T, class F>
STDC_KERNEL(F::kThreads, F::kThreads <= 192 ? 2 : 1)
down_kernel(const STDC_CONSTANT Params p) {
  down_block<T, T, F>(p);
}
template <class T, class F>
STDC_KERNEL(F::kThreads, F::kThreads <= 192 ? 2 : 1)
down_levels_kernel(const STDC_CONSTANT Params p) {
  down_block<levels_t, T, F>(p);
}

template <class F>
Params params(const DownArgs& a) {
  const Tiling& t = a.tiling;
  Params p{};
  p.a = a;
  Source& s = p.s;
  s.first = input(a.x, a.channels, a.pitch, a.negative);
  s.weight = a.weight;
  s.blocks = rounded_up(a.outputs, 16);
  s.height = a.height;
  s.width = a.width;
  s.kernel = 1;
  complete<F>(s, t, 1);
  p.width = divisor(t.width);
  p.out_width = divisor(t.width / 2);
  p.tiles_x = rounded_up(a.out_width, t.width / 2);
  p.tiles = p.tiles_x * rounded_up(a.out_height, t.height / 2);
  p.aligned = aligned(a.y, a.out_pitch);
  p.pooled_aligned = aligned(a.pooled, a.pooled_pitch);
  p.vectors = rounded_up(a.outputs, 8);
  return p;
}

template <class F>
void check_odd(const Tiling& t) {
  check<F>("down", t);
  if (t.height < 3 || t.width < 3 || t.height % 2 == 0 || t.width % 2 == 0)
    throw std::runtime_error("down: tiles of " + std::to_string(t.height) + "x" + std::to_string(t.width) +
                             " inputs; both must be odd and at least 3");
}

template <class T, class F>
void launch_form(const DownArgs& a, const Stream& stream) {
  check_odd<F>(a.tiling);
  const Params p = params<F>(a);
  const Index grid{a.images * p.tiles, rounded_up(a.outputs, F::kChannels), 1};
  const Kernel<Params> kernel = a.multipliers != nullptr ? down_levels_kernel<T, F> : down_kernel<T, F>;
  launch(kernel, "down", grid, F::kThreads, bytes<F>(p.s), p, stream);
}

template <class F>
int bytes_of(const DownArgs& a) {
  check_odd<F>(a.tiling);
  return bytes<F>(params<F>(a).s);
}

}  // namespace

#define STDC_CASE(index, ...) \
  case index:                 \
    return launch_form<STDC_TYPE, CompiledForm<__VA_ARGS__>>(a, stream);

template <>
void down_of<STDC_TYPE>(const DownArgs& a, const Stream& stream) {
  switch (a.tiling.form) {
    STDC_DOWN_FORMS(STDC_CASE)
    default:
      throw std::runtime_error("down: no form " + std::to_string(a.tiling.form));
  }
}
#undef STDC_CASE

#define STDC_CASE(index, ...) \
  case index:                 \
    return bytes_of<CompiledForm<__VA_ARGS__>>(a);

template <>
int down_bytes_of<STDC_TYPE>(const DownArgs& a) {
  switch (a.tiling.form) {
    STDC_DOWN_FORMS(STDC_CASE)
    default:
      return 0;
  }
}

}  // namespace gpu
}  // namespace stdc
