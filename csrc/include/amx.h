// Convolution rows on AMX tiles: 32 pixels by 32 output channels at a time, runs of 32 elements of bf16 or 64 of 8 bits.
//
// Tiles are touched only through the functions at the top. With STDC_AMX_EMULATED they are arrays, so that everything
// else here is tested on machines without AMX.
#pragma once

#include "simd.h"

namespace stdc {
namespace {

// Tiles 0..3 are accumulators [pixels of 16][outputs of 16], 4 and 5 inputs, 6 and 7 weights.
struct TileConfig {
  uint8_t palette, start;
  uint8_t reserved[14];
  uint16_t bytes[16];  // a row
  uint8_t rows[16];
};

#if defined(STDC_AMX_EMULATED)

struct Tile {
  uint8_t data[16][64];
};
static __thread Tile tiles[8];
static __thread TileConfig current;
static __thread bool configured;

STDC_INLINE void configure(const TileConfig& c) { current = c, configured = true; }
STDC_INLINE void release_tiles() { configured = false; }
template <int T>
STDC_INLINE void tile_zero() {
  memset(&tiles[T], 0, sizeof(Tile));
}
template <int T>
STDC_INLINE void tile_load(const void* p, ptrdiff_t stride) {
  if (!configured) __builtin_trap();
  for (int r = 0; r < current.rows[T]; r++)
    memcpy(tiles[T].data[r], static_cast<const char*>(p) + r * stride, current.bytes[T]);
}
template <int T>
STDC_INLINE void tile_store(void* p, ptrdiff_t stride) {
  for (int r = 0; r < current.rows[T]; r++)
    memcpy(static_cast<char*>(p) + r * stride, tiles[T].data[r], current.bytes[T]);
}
template <class T, int C, int A, int B>
STDC_INLINE void tile_multiply() {
  for (int r = 0; r < current.rows[C]; r++) {
    if constexpr (sizeof(T) == 1) {
      int32_t acc[16];
      memcpy(acc, tiles[C].data[r], 64);
      for (int k = 0; k < 64; k++)
        for (int n = 0; n < 16; n++)
          acc[n] += tiles[A].data[r][k] * static_cast<int8_t>(tiles[B].data[k / 4][4 * n + k % 4]);
      memcpy(tiles[C].data[r], acc, 64);
      continue;
    }
    float acc[16];
    memcpy(acc, tiles[C].data[r], 64);
    const bf16* a = reinterpret_cast<const bf16*>(tiles[A].data[r]);
    for (int k = 0; k < 16; k++) {
      const bf16* b = reinterpret_cast<const bf16*>(tiles[B].data[k]);
      for (int n = 0; n < 16; n++) {
        acc[n] += to_float(a[2 * k]) * to_float(b[2 * n]);
        acc[n] += to_float(a[2 * k + 1]) * to_float(b[2 * n + 1]);
      }
    }
    memcpy(tiles[C].data[r], acc, 64);
  }
}

#else

static __thread bool configured;

// NOTE: assembly, since GCC's intrinsics do not tell the compiler that they read and write memory.
STDC_INLINE void configure(const TileConfig& c) {
  __asm__ volatile("ldtilecfg %0" ::"m"(c));
  configured = true;
}
STDC_INLINE void release_tiles() {
  if (configured) __asm__ volatile("tilerelease");
  configured = false;
}
template <int T>
STDC_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
STDC_INLINE void tile_load(const void* p, ptrdiff_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
STDC_INLINE void tile_store(void* p, ptrdiff_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}
template <class T, int C, int A, int B>
STDC_INLINE void tile_multiply() {
  if constexpr (sizeof(T) == 1)
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  else
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

static __thread int configured_pixels;

// std::conditional_t, which would be of the STL.
template <bool kFirst, class A, class B>
struct Choice {
  using Type = A;
};
template <class A, class B>
struct Choice<false, A, B> {
  using Type = B;
};

// For some pixels, at most 32: the rows of the two input tiles and of their accumulators.
STDC_INLINE void configure_for(int pixels) {
  if (configured && configured_pixels == pixels) return;
  TileConfig c;
  memset(&c, 0, sizeof(c));
  c.palette = 1;
  const int first = pixels < 16 ? pixels : 16, second = pixels - first;
  for (int t = 0; t < 8; t++) c.bytes[t] = 64;
  c.rows[0] = c.rows[1] = c.rows[4] = static_cast<uint8_t>(first);
  c.rows[2] = c.rows[3] = c.rows[5] = static_cast<uint8_t>(second ? second : 1);
  c.rows[6] = c.rows[7] = 16;
  configure(c);
  configured_pixels = pixels;
}

template <class T, bool kTwo>
STDC_INLINE void accumulate(const ConvRow& a, int64_t first) {
  const char* w = static_cast<const char*>(a.weights);
  tile_zero<0>();
  tile_zero<1>();
  if (kTwo) {
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int s = 0; s < a.step_count; s++) {
    constexpr ptrdiff_t kBytes = sizeof(T);
    const ptrdiff_t step = a.steps[s].step * kBytes;  // bytes
    const char* in = static_cast<const char*>(a.in) + a.steps[s].offset * kBytes + first * step;
    for (int64_t k = a.steps[s].length; k > 0; k -= 64 / kBytes) {
      // Weights [16 pairs][32 outputs][2], or by four: two tiles side by side.
      tile_load<6>(w, 128);
      tile_load<7>(w + 64, 128);
      tile_load<4>(in, step);
      tile_multiply<T, 0, 4, 6>();
      tile_multiply<T, 1, 4, 7>();
      if (kTwo) {
        tile_load<5>(in + 16 * step, step);
        tile_multiply<T, 2, 5, 6>();
        tile_multiply<T, 3, 5, 7>();
      }
      in += 64;
      w += 16 * 128;
    }
  }
}

// What a sum of products of a pixel is worth.
STDC_INLINE V tile_worth(const ConvRow& a, int lane, const float* sums) { return load(sums) + load(a.bias + lane); }
STDC_INLINE V tile_worth(const ConvRow& a, int lane, const int32_t* sums) {
  I sum, start;
  memcpy(&sum, sums, sizeof(sum));
  memcpy(&start, a.start + lane, sizeof(start));
  return worth(a, lane, sum + start);
}

template <class T>
STDC_INLINE void tile_row(const ConvRow& a) {
  constexpr int kVectors32 = 32 / kLanes;
  alignas(64) typename Choice<sizeof(T) == 1, int32_t, float>::Type acc[32][32];
  for (int64_t first = 0; first < a.pixels; first += 32) {
    const int pixels = static_cast<int>(a.pixels - first < 32 ? a.pixels - first : 32);
    configure_for(pixels);
    if (pixels > 16) {
      accumulate<T, true>(a, first);
      tile_store<2>(acc[16], 128);
      tile_store<3>(acc[16] + 16, 128);
    } else {
      accumulate<T, false>(a, first);
    }
    tile_store<0>(acc[0], 128);
    tile_store<1>(acc[0] + 16, 128);

    // Epilogue.
    V total[kVectors32] = {};
    for (int p = 0; p < pixels; p++) {
      V v[kVectors32];
      const ptrdiff_t place = (first + p) * a.out_step;
      for (int i = 0; i < kVectors32; i++) {
        v[i] = tile_worth(a, i * kLanes, acc[p] + i * kLanes);
        if (a.relu) v[i] = relu(v[i]);
        total[i] += v[i];
        const int left = a.channels - i * kLanes;
        if (left <= 0) continue;
        const int n = left < kLanes ? left : kLanes;
        if (a.to == DType::u8) {
          store_levels(static_cast<uint8_t*>(a.out) + place + i * kLanes, v[i], a.levels, i * kLanes, n);
        } else if (a.to == DType::f32) {
          float* out = static_cast<float*>(a.out) + place + i * kLanes;
          n == kLanes ? store(out, v[i]) : store_some(out, v[i], n);
        } else {
          bf16* out = static_cast<bf16*>(a.out) + place + i * kLanes;
          n == kLanes ? store(out, v[i]) : store_some(out, v[i], n);
        }
      }
    }
    if (a.sums)
      for (int c = 0; c < a.channels; c++) a.sums[c] += total[c / kLanes][c % kLanes];
  }
}

}  // namespace
}  // namespace stdc
