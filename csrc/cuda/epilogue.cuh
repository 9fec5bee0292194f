// What follows the products: sums of the blocks that share a tile, bias and activation, averages, and the way to memory
// in vectors of 16 bytes through shared memory. All threads of a block go through it; the warps that lead have sums.
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
  return (warp_m<F>() * F::kM + i) * 16 + h * 8 + lane_id() / 4;
}
// And the first of its two channels of block j.
template <class F>
STDC_DEVICE int channel_of(int j) {
  return (warp_n<F>() * F::kN + j) * 8 + lane_id() % 4 * 2;
}

// Adds up what `split` blocks have, in their order, in the block that comes last; false in the others.
template <class F, class V>
STDC_DEVICE bool add_up(Sums<F, V>& sums, float* workspace, int* arrivals, int shared, int split, int part) {
  constexpr int kVectors = F::kM * F::kN, kThreads = 32 * F::kOfSlice;  // of a thread; that have sums
  Vec* all = reinterpret_cast<Vec*>(workspace) + static_cast<int64_t>(shared) * split * kVectors * kThreads;
  Vec* own = all + static_cast<int64_t>(part) * kVectors * kThreads + thread_id();
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j) {
      if (!leads<F>()) continue;
      Vec v;
      STDC_UNROLL
      for (int k = 0; k < 4; ++k) v.word[k] = as_bits(sums.c[i][j][k]);
      store(own + (i * F::kN + j) * kThreads, v);
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
  if (!leads<F>()) return true;
  STDC_ROLLED
  for (int p = 0; p < split; ++p) {
    const Vec* from = all + static_cast<int64_t>(p) * kVectors * kThreads + thread_id();
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int j = 0; j < F::kN; ++j) {
        const Vec v = load_fresh(from + (i * F::kN + j) * kThreads);
        STDC_UNROLL
        for (int k = 0; k < 4; ++k) sums.c[i][j][k] += from_bits<V>(v.word[k]);
      }
  }
  return true;
}

// Sums of levels as numbers. multipliers: of the outputs, from channel `first` of a block on.
template <class F>
STDC_DEVICE Sums<F> scaled(const LevelSums<F>& sums, const float* multipliers, int first, int outputs) {
  Sums<F> found;
  STDC_UNROLL
  for (int j = 0; j < F::kN; ++j) {
    float m[2];
    STDC_UNROLL
    for (int k = 0; k < 2; ++k) {
      const int channel = first + channel_of<F>(j) + k;
      m[k] = channel < outputs ? load_weight(multipliers + channel) : 0;
    }
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int k = 0; k < 4; ++k) found.c[i][j][k] = static_cast<float>(sums.c[i][j][k]) * m[k % 2];
  }
  return found;
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
      if (lane_id() < 4 && leads<F>())
        shared_store((warp_m<F>() * F::kChannels + channel_of<F>(j) + k) * 4, total[k]);
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
  if (!leads<F>()) return;
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j)
      STDC_UNROLL
      for (int h = 0; h < 2; ++h)
        shared_store(pixel_of<F>(i, h) * kRowBytes<F> + channel_of<F>(j) * 2,
                     pack<T>(sums.c[i][j][2 * h], sums.c[i][j][2 * h + 1]));
}

// What a map of levels is made by: one over the steps of its channels, or null where it is none, and whether its levels
// are -127 to 127 or 0 to 255.
struct Steps {
  const float* inverse;
  int negative;
};
// The level of x / step, to nearest even, clipped; NaN is the least.
STDC_DEVICE uint32_t level(float x, float inverse, int negative) {
  const float low = negative ? -127.f : 0.f, high = negative ? 127.f : 255.f;
  x *= inverse;
  x = x > low ? x : low;
  x = x < high ? x : high;
  return as_bits(x + 12582912.f) & 0xffu;  // the last bit of a float near this is worth one, so that adding it rounds
}
// Eight levels of channels from `channel` on; `y` is that one's, of a pixel.
STDC_DEVICE void store_levels(uint8_t* y, const float (&x)[8], const Steps& steps, int channel, int count,
                              bool aligned) {
  Pair v{};
  STDC_UNROLL
  for (int i = 0; i < 8; ++i)
    if (i < count) v.word[i / 4] |= level(x[i], load_weight(steps.inverse + channel + i), steps.negative) << i % 4 * 8;
  if (aligned && count >= 8) {
    store(reinterpret_cast<Pair*>(y), v);
    return;
  }
  STDC_UNROLL
  for (int i = 0; i < 8; ++i)
    if (i < count) store(y + i, static_cast<uint8_t>(v.word[i / 4] >> i % 4 * 8));
}

// The tile to shared memory as levels, in rows as long as those of numbers. outputs: how many channels there are.
template <class F>
STDC_DEVICE void stage_levels(const Sums<F>& sums, const Steps& steps, int first, int outputs) {
  if (!leads<F>()) return;
  STDC_UNROLL
  for (int j = 0; j < F::kN; ++j) {
    float inverse[2];
    STDC_UNROLL
    for (int k = 0; k < 2; ++k) {
      const int channel = first + channel_of<F>(j) + k;
      inverse[k] = channel < outputs ? load_weight(steps.inverse + channel) : 0;
    }
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int h = 0; h < 2; ++h) {
        const uint32_t low = level(sums.c[i][j][2 * h], inverse[0], steps.negative);
        const uint32_t high = level(sums.c[i][j][2 * h + 1], inverse[1], steps.negative);
        shared_store(pixel_of<F>(i, h) * kRowBytes<F> + channel_of<F>(j), static_cast<uint16_t>(low | high << 8));
      }
  }
}

// From shared memory to channels `first` and on of a map [.., width, .. of pitch].
template <class F>
STDC_DEVICE void store_levels(uint8_t* y, const TilePlace& place, const Divisor& width, int64_t map_pixels,
                              int map_width, int pitch, int first, int outputs, bool aligned) {
  constexpr int kVectors = F::kChannels / 16;
  y += place.image * map_pixels * pitch + first;
  STDC_ROLLED
  for (int v = thread_id(); v < F::kPixels * kVectors; v += F::kThreads) {
    const int m = v / kVectors, channel = v % kVectors * 16, row = divide(m, width), column = m - row * width.by;
    const int count = outputs - first - channel;
    if (count <= 0 || !stored(place, row, column)) continue;
    const int pixel = (place.row + row * place.step) * map_width + place.column + column * place.step;
    uint8_t* const to = y + pixel * pitch + channel;
    const Vec found = shared_load<Vec>(m * kRowBytes<F> + channel);
    if (aligned && count >= 16) {
      store(reinterpret_cast<Vec*>(to), found);
      continue;
    }
    STDC_UNROLL
    for (int i = 0; i < 16; ++i)
      if (i < count) store(to + i, static_cast<uint8_t>(found.word[i / 4] >> i % 4 * 8));
  }
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

// The tile to a map, through shared memory: rounded, or as levels. Where products are of levels, T, the map's numbers
// are of a type.
template <class T, class F>
STDC_DEVICE void put_tile(const Sums<F>& sums, const Steps& steps, Type type, void* y, const TilePlace& place,
                          const Divisor& width, int64_t map_pixels, int map_width, int pitch, int first, int outputs,
                          bool aligned) {
  if (steps.inverse != nullptr) {
    stage_levels(sums, steps, first, outputs);
    block_sync();
    store_levels<F>(static_cast<uint8_t*>(y), place, width, map_pixels, map_width, pitch, first, outputs, aligned);
    return;
  }
  if constexpr (!is_levels<T>::value)
    stage_tile<T>(sums);
  else if (type == kHalf)
    stage_tile<half_t>(sums);
  else
    stage_tile<bf16_t>(sums);
  block_sync();
  store_tile<T, F>(static_cast<T*>(y), place, width, map_pixels, map_width, pitch, first, outputs, aligned);
}
// Whether a map of numbers, or of levels, takes vectors of 16 bytes.
inline bool takes_vectors(const void* y, int pitch, const float* inverse) {
  return aligned(y, pitch) && (inverse == nullptr || pitch % 16 == 0);
}

// In float32, straight to planes [.., channels, pixels].
template <class F>
STDC_DEVICE void store_planes(const Sums<F>& sums, float* y, const TilePlace& place, const Divisor& width,
                              int64_t map_pixels, int map_width, int channels, int first, int outputs) {
  if (!leads<F>()) return;
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
