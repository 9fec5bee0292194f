// Rows of convolutions: for each output pixel, products of runs of input elements with packed weights.
//
// Accumulators for kPixels pixels by one block of channels stay in registers over all steps; per element (pair of
// elements in bf16) that is one broadcast a pixel and one load a vector of weights.
#include "simd.h"

// Clang 14 names it without the underscore.
#if defined(__AMX_BF16__) || defined(__AMXBF16__) || defined(STDC_AMX_EMULATED)
#define STDC_TILES
#endif
#if defined(STDC_TILES)
#include "amx.h"
#endif

namespace stdc {
namespace {

// Vectors of a block and the most pixels whose accumulators fit into the registers beside weights and a broadcast.
#if defined(STDC_TILES) && !defined(__AVX512F__)
constexpr int kVectors = 32 / kLanes, kPixels = 1;  // the tiles' layout of weights, for tests
#elif defined(__AVX512F__)
constexpr int kVectors = 2, kPixels = 14;
#elif defined(__AVX2__)
constexpr int kVectors = 2, kPixels = 6;
#else
constexpr int kVectors = 2, kPixels = 6;
#endif
constexpr int kBlock = kVectors * kLanes;
constexpr int64_t kPart = 512;  // elements

// What one step of the inner loop multiplies: an element.
struct Float {
  using T = float;
  static constexpr int kUnit = 1;
  typedef V W;
  STDC_INLINE V broadcast(const float* p) { return splat(*p); }
  STDC_INLINE W weight(const float* p) { return load(p); }
  STDC_INLINE V multiply(V acc, V x, W w) { return acc + x * w; }
};

// ... or a pair of elements.
struct Pair {
  using T = bf16;
  static constexpr int kUnit = 2;
#if defined(__AVX512BF16__)
  typedef __m512i W;
  STDC_INLINE __m512i broadcast(const bf16* p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return _mm512_set1_epi32(pair);
  }
  STDC_INLINE W weight(const bf16* p) { return _mm512_loadu_si512(p); }
  STDC_INLINE V multiply(V acc, __m512i x, W w) {
    return reinterpret_cast<V>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(x),
                                                reinterpret_cast<__m512bh>(w)));
  }
#else
  typedef U W;
  STDC_INLINE U broadcast(const bf16* p) {
    uint32_t pair;
    memcpy(&pair, p, 4);
    return pair - U{};
  }
  STDC_INLINE W weight(const bf16* p) { return *reinterpret_cast<const Uu*>(p); }
  STDC_INLINE V multiply(V acc, U x, W w) {
    acc = acc + reinterpret_cast<V>(x << 16) * reinterpret_cast<V>(w << 16);
    return acc + reinterpret_cast<V>(x & 0xffff0000u) * reinterpret_cast<V>(w & 0xffff0000u);
  }
#endif
};

template <class T>
STDC_INLINE void store_block(T* out, const V* v, int channels) {
  STDC_UNROLL for (int i = 0; i < kVectors; i++) {
    const int left = channels - i * kLanes;
    if (left >= kLanes)
      store(out + i * kLanes, v[i]);
    else if (left > 0)
      store_some(out + i * kLanes, v[i], left);
  }
}

// Adds what a tile stored to the sums of the row.
STDC_INLINE void add_sums(float* sums, const V* v, int channels) {
  STDC_UNROLL for (int i = 0; i < kVectors; i++) {
    const int left = channels - i * kLanes;
    if (left >= kLanes)
      store(sums + i * kLanes, load(sums + i * kLanes) + v[i]);
    else if (left > 0)
      store_some(sums + i * kLanes, load_some(sums + i * kLanes, left) + v[i], left);
  }
}

template <class E, int P>
void tile(const ConvRow& a, int64_t first) {
  using T = typename E::T;
  V acc[P][kVectors];
  STDC_UNROLL for (int p = 0; p < P; p++)
    STDC_UNROLL for (int v = 0; v < kVectors; v++) acc[p][v] = load(a.bias + v * kLanes);

  const T* w = static_cast<const T*>(a.weights);
  V total[P][kVectors];  // of the parts that are done, in float32 sums
  int64_t since = 0;
  bool parts = false;
  for (int s = 0; s < a.step_count; s++) {
    const ptrdiff_t step = a.steps[s].step;
    const T* in = static_cast<const T*>(a.in) + a.steps[s].offset + first * step;
    // NOTE: three pixels a pointer, by the index scales 0, 1, 2 of an x86 address: a pointer a pixel would spill.
    const T* base[(P + 2) / 3];
    STDC_UNROLL for (int g = 0; g < (P + 2) / 3; g++) base[g] = in + 3 * g * step;
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t left = a.steps[s].length; left > 0; left -= kLine) {
      // The next pixels' line, which no prefetcher foresees: a pixel each is too many streams.
      if (a.ahead) STDC_UNROLL for (int p = 0; p < P; p++) __builtin_prefetch(base[p / 3] + (P + p % 3) * step);
      for (int64_t k = left < kLine ? left : kLine; k > 0; k -= E::kUnit) {
        typename E::W weights[kVectors];
        STDC_UNROLL for (int v = 0; v < kVectors; v++) weights[v] = E::weight(w + v * kLanes * E::kUnit);
        STDC_UNROLL for (int p = 0; p < P; p++) {
          const auto x = E::broadcast(base[p / 3] + (p % 3) * step);
          STDC_UNROLL for (int v = 0; v < kVectors; v++) acc[p][v] = E::multiply(acc[p][v], x, weights[v]);
        }
        STDC_UNROLL for (int g = 0; g < (P + 2) / 3; g++) base[g] += E::kUnit;
        w += kBlock * E::kUnit;
      }
    }
    // A sum of thousands of products loses less in parts.
    since += a.steps[s].length;
    if (E::kUnit == 1 && since >= kPart && s + 1 < a.step_count) {
      STDC_UNROLL for (int p = 0; p < P; p++)
        STDC_UNROLL for (int v = 0; v < kVectors; v++) {
          total[p][v] = parts ? total[p][v] + acc[p][v] : acc[p][v];
          acc[p][v] = V{};
        }
      parts = true;
      since = 0;
    }
  }
  if (parts) {
    STDC_UNROLL for (int p = 0; p < P; p++)
      STDC_UNROLL for (int v = 0; v < kVectors; v++) acc[p][v] += total[p][v];
  }

  // Epilogue.
  if (a.relu) {
    STDC_UNROLL for (int p = 0; p < P; p++)
      STDC_UNROLL for (int v = 0; v < kVectors; v++) acc[p][v] = relu(acc[p][v]);
  }
  if (a.sums) {
    V total[kVectors];
    STDC_UNROLL for (int v = 0; v < kVectors; v++) {
      total[v] = acc[0][v];
      STDC_UNROLL for (int p = 1; p < P; p++) total[v] += acc[p][v];
    }
    add_sums(a.sums, total, a.channels);
  }
  STDC_UNROLL for (int p = 0; p < P; p++) {
    const ptrdiff_t place = (first + p) * a.out_step;
    if (a.out_f32)
      store_block(static_cast<float*>(a.out) + place, acc[p], a.channels);
    else
      store_block(static_cast<T*>(a.out) + place, acc[p], a.channels);
  }
}

template <class E, int P>
struct Sizes {
  STDC_INLINE void run(const ConvRow& a, int64_t first, int pixels) {
    if (pixels == P)
      tile<E, P>(a, first);
    else
      Sizes<E, P - 1>::run(a, first, pixels);
  }
};
template <class E>
struct Sizes<E, 0> {
  STDC_INLINE void run(const ConvRow&, int64_t, int) {}
};

template <class E>
void row(const ConvRow& a) {
  // Tiles of nearly equal width: a narrow last one would leave the multipliers waiting for each other.
  const int64_t tiles = (a.pixels + kPixels - 1) / kPixels;
  for (int64_t t = 0, first = 0; t < tiles; t++) {
    const int64_t last = a.pixels * (t + 1) / tiles;
    Sizes<E, kPixels>::run(a, first, static_cast<int>(last - first));
    first = last;
  }
}

}  // namespace

#if defined(STDC_TILES)
void STDC_FN(conv_bf16)(const ConvRow& a) {
  for (int s = 0; s < a.step_count; s++)
    if (a.steps[s].length % 32) return row<Pair>(a);  // the stem, blocks with few channels
  tile_row(a);
}
void STDC_FN(finish)() { release_tiles(); }
#else
void STDC_FN(conv_bf16)(const ConvRow& a) { row<Pair>(a); }
#endif
void STDC_FN(conv_f32)(const ConvRow& a) { row<Float>(a); }
extern const int STDC_FN(block) = kBlock;

}  // namespace stdc
