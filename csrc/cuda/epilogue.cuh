// What follows the products: sums of the blocks that share a tile, bias and activation, averages, and the way to memory
// in vectors of 16 bytes through shared memory.
#pragma once

#include "tile_product.cuh"

namespace stdc {
namespace gpu {

// Where the pixels of a tile go: pixel (y, x) of it to (first + y * step, ...) of a map.
struct TilePlace {
  int64_t image;
  int row, column, step;
  int rows, columns;  // of the tile that are stored
  int pick_row, pick_column;  // if not negative, only that row (column) of the tile
};

STDC_DEVICE bool stored(const TilePlace& p, int y, int x) {
  return y < p.rows && x < p.columns && (p.pick_row < 0 || y == p.pick_row) &&
         (p.pick_column < 0 || x == p.pick_column);
}

// Of a lane: the pixel of its half h of block i.
template <class F>
STDC_DEVICE int pixel_of(int i, int h) {
  return (warp_id() / F::kWarpsN * F::kM + i) * 16 + h * 8 + lane_id() / 4;
}
// And the first of its two channels of block j.
template <class F>
STDC_DEVICE int channel_of(int j) {
  return (warp_id() % F::kWarpsN * F::kN + j) * 8 + lane_id() % 4 * 2;
}

// Adds up what `split` blocks have, in their order, in the block that comes last; false in the others.
template <class F>
STDC_DEVICE bool add_up(Sums<F>& sums, float* workspace, int* arrivals, int shared, int split, int part) {
  constexpr int kVectors = F::kM * F::kN;  // of a thread
  Vec* all = reinterpret_cast<Vec*>(workspace) + static_cast<int64_t>(shared) * split * kVectors * F::kThreads;
  Vec* own = all + static_cast<int64_t>(part) * kVectors * F::kThreads + thread_id();
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j) {
      Vec v;
      STDC_UNROLL
      for (int k = 0; k < 4; ++k) v.word[k] = as_bits(sums.c[i][j][k]);
      store(own + (i * F::kN + j) * F::kThreads, v);
    }
  block_sync();
  if (thread_id() == 0) {
    fence();  // for the whole block, whose writes came before the barrier
    const int before = atomic_add(arrivals + shared, 1);
    shared_store(0, before);
    if (before == split - 1) {
      store(arrivals + shared, 0);  // ready for the next image
      fence();
    }
  }
  block_sync();
  const bool last = shared_load<int>(0) == split - 1;
  block_sync();
  if (!last) return false;
  clear(sums);
  STDC_ROLLED
  for (int p = 0; p < split; ++p) {
    const Vec* from = all + static_cast<int64_t>(p) * kVectors * F::kThreads + thread_id();
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int j = 0; j < F::kN; ++j) {
        const Vec v = load_fresh(from + (i * F::kN + j) * F::kThreads);
        STDC_UNROLL
        for (int k = 0; k < 4; ++k) sums.c[i][j][k] += as_float(v.word[k]);
      }
  }
  return true;
}

// Adds the bias and applies the activation; NaN stays NaN, as in torch.
template <class F>
STDC_DEVICE void finish(Sums<F>& sums, const float* bias, int first, int outputs, int act) {
  STDC_UNROLL
  for (int j = 0; j < F::kN; ++j) {
    float b[2];
    STDC_UNROLL
    for (int k = 0; k < 2; ++k) {
      const int channel = first + channel_of<F>(j) + k;
      b[k] = channel < outputs ? load_weight(bias + channel) : 0;
    }
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int k = 0; k < 4; ++k) {
        const float v = sums.c[i][j][k] + b[k % 2];
        sums.c[i][j][k] = act == kRelu && v < 0 ? 0 : v;
      }
  }
}

// What the tile adds to the averages of its channels, in a fixed order.
template <class F>
STDC_DEVICE void average(const Sums<F>& sums, const TilePlace& place, const Divisor& width, float* out, int count,
                         float share) {
  uint32_t live = 0;  // of the lane's pixels
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int m = pixel_of<F>(i, h), y = divide(m, width);
      if (stored(place, y, m - y * width.by)) live |= 1u << (2 * i + h);
    }
  STDC_UNROLL
  for (int j = 0; j < F::kN; ++j) {
    float total[2] = {0, 0};
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int k = 0; k < 4; ++k)
        if (live >> (2 * i + k / 2) & 1) total[k % 2] += sums.c[i][j][k];
    STDC_UNROLL
    for (int k = 0; k < 2; ++k) {
      STDC_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) total[k] += shuffle_xor(total[k], mask);
      if (lane_id() < 4)
        shared_store((warp_id() / F::kWarpsN * F::kChannels + channel_of<F>(j) + k) * 4, total[k]);
    }
  }
  block_sync();
  for (int n = thread_id(); n < F::kChannels && n < count; n += F::kThreads) {
    float total = 0;
    for (int w = 0; w < F::kWarpsM; ++w) total += shared_load<float>((w * F::kChannels + n) * 4);
    store(out + n, total * share);
  }
  block_sync();
}

// The tile to shared memory, rounded.
template <class T, class F>
STDC_DEVICE void stage_tile(const Sums<F>& sums) {
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j)
      STDC_UNROLL
      for (int h = 0; h < 2; ++h)
        shared_store(pixel_of<F>(i, h) * kRowBytes<F> + channel_of<F>(j) * 2,
                     pack<T>(sums.c[i][j][2 * h], sums.c[i][j][2 * h + 1]));
}

// From shared memory to channels `first` and on of a map [.., width, .. of pitch].
template <class T, class F>
STDC_DEVICE void store_tile(T* y, const TilePlace& place, const Divisor& width, int64_t map_pixels, int map_width,
                            int pitch, int first, int outputs, bool aligned) {
  constexpr int kVectors = F::kChannels / 8;
  y += place.image * map_pixels * pitch + first;
  STDC_ROLLED
  for (int v = thread_id(); v < F::kPixels * kVectors; v += F::kThreads) {
    const int m = v / kVectors, channel = v % kVectors * 8, row = divide(m, width), column = m - row * width.by;
    const int count = outputs - first - channel;
    if (count <= 0 || !stored(place, row, column)) continue;
    const int pixel = (place.row + row * place.step) * map_width + place.column + column * place.step;
    store_vector(y + pixel * pitch + channel, shared_load<Vec>(m * kRowBytes<F> + channel * 2), count, aligned);
  }
}

// In float32, straight to planes [.., channels, pixels].
template <class F>
STDC_DEVICE void store_planes(const Sums<F>& sums, float* y, const TilePlace& place, const Divisor& width,
                              int64_t map_pixels, int map_width, int channels, int first, int outputs) {
  y += place.image * map_pixels * channels;
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int m = pixel_of<F>(i, h), row = divide(m, width), column = m - row * width.by;
      if (!stored(place, row, column)) continue;
      const int pixel = (place.row + row * place.step) * map_width + place.column + column * place.step;
      STDC_UNROLL
      for (int j = 0; j < F::kN; ++j)
        STDC_UNROLL
        for (int k = 0; k < 2; ++k) {
          const int channel = first + channel_of<F>(j) + k;
          if (channel < outputs) store(y + channel * map_pixels + pixel, sums.c[i][j][2 * h + k]);
        }
    }
}

}  // namespace gpu
}  // namespace stdc
