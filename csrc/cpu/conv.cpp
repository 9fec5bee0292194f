// Rows of convolutions: for each output pixel, products of runs of input elements with packed weights.
//
// Accumulators for kPixels pixels by one block of channels stay in registers over all steps; per element (two of them
// in bf16, four in 8 bits) that is one broadcast a pixel and one load a vector of weights.
#include "simd.h"

// Clang 14 names it without the underscore.
#if defined(__AMX_BF16__) || defined(__AMXBF16__) || defined(STDC_AMX_EMULATED)
#define STDC_TILES
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
  using Sum = V;
  static constexpr int kUnit = 1;
  typedef V W;
  STDC_INLINE V broadcast(const float* p) { return splat(*p); }
  STDC_INLINE W weight(const float* p) { return load(p); }
  STDC_INLINE V multiply(V acc, V x, W w) { return acc + x * w; }
};

// ... or a pair of elements.
struct Pair {
  using T = bf16;
  using Sum = V;
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

// ... or four elements of 8 bits, levels by whole weights.
struct Quad {
  using T = uint8_t;
  using Sum = I;
  static constexpr int kUnit = 4;
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  typedef I W;
  STDC_INLINE I broadcast(const uint8_t* p) { return quad(p) - I{}; }
  STDC_INLINE W weight(const uint8_t* p) { return load_quads(p); }
  STDC_INLINE I multiply(I acc, I x, W w) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<I>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(w)));
#else
    return reinterpret_cast<I>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(acc), reinterpret_cast<__m256i>(x),
                                                       reinterpret_cast<__m256i>(w)));
#endif
  }
#else
  // Even and odd elements in 16 bits: the sums of two products of those are exact, other than vpmaddubsw's.
  struct Halves {
    I even, odd;
  };
  typedef Halves W;
  STDC_INLINE Halves broadcast(const uint8_t* p) {
    const I x = quad(p) - I{};
    return {x & 0x00ff00ff, (x >> 8) & 0x00ff00ff};
  }
  STDC_INLINE W weight(const uint8_t* p) {
    const S16 w = reinterpret_cast<S16>(load_quads(p));
    return {reinterpret_cast<I>((w << 8) >> 8), reinterpret_cast<I>(w >> 8)};
  }
  STDC_INLINE I multiply(I acc, Halves x, Halves w) { return acc + pairs(x.even, w.even) + pairs(x.odd, w.odd); }

  STDC_INLINE I pairs(I x, I w) {
#if defined(__AVX512F__)
    return reinterpret_cast<I>(_mm512_madd_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(w)));
#elif defined(__AVX2__)
    return reinterpret_cast<I>(_mm256_madd_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(w)));
#else
    return (x & 0xffff) * ((w << 16) >> 16) + (x >> 16) * (w >> 16);
#endif
  }
#endif
  STDC_INLINE int32_t quad(const uint8_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return x;
  }
  STDC_INLINE I load_quads(const uint8_t* p) {
    I w;
    memcpy(&w, p, sizeof(w));
    return w;
  }
};

template <class E>
STDC_INLINE typename E::Sum start(const ConvRow& a, int lane) {
  if constexpr (E::kUnit < 4) return load(a.bias + lane);
  typename E::Sum s;
  memcpy(&s, a.start + lane, sizeof(s));
  return s;
}

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

STDC_INLINE void store_block(uint8_t* out, const V* v, const Levels& levels, int channels) {
  STDC_UNROLL for (int i = 0; i < kVectors; i++) {
    const int left = channels - i * kLanes;
    if (left > 0) store_levels(out + i * kLanes, v[i], levels, i * kLanes, left < kLanes ? left : kLanes);
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
  typename E::Sum acc[P][kVectors];
  STDC_UNROLL for (int p = 0; p < P; p++)
    STDC_UNROLL for (int v = 0; v < kVectors; v++) acc[p][v] = start<E>(a, v * kLanes);

  const T* w = static_cast<const T*>(a.weights);
  typename E::Sum total[P][kVectors];  // of the parts that are done, in float32 sums
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
          acc[p][v] = typename E::Sum{};
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
  V sums[kVectors] = {};
  STDC_UNROLL for (int p = 0; p < P; p++) {
    V y[kVectors];
    STDC_UNROLL for (int v = 0; v < kVectors; v++) {
      y[v] = worth(a, v * kLanes, acc[p][v]);
      if (a.relu) y[v] = relu(y[v]);
      sums[v] = p ? sums[v] + y[v] : y[v];
    }
    const ptrdiff_t place = (first + p) * a.out_step;
    if (a.to == DType::f32)
      store_block(static_cast<float*>(a.out) + place, y, a.channels);
    else if (a.to == DType::bf16)
      store_block(static_cast<bf16*>(a.out) + place, y, a.channels);
    else
      store_block(static_cast<uint8_t*>(a.out) + place, y, a.levels, a.channels);
  }
  if (a.sums) add_sums(a.sums, sums, a.channels);
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
  tile_row<bf16>(a);
}
void STDC_FN(conv_u8)(const ConvRow& a) {
  for (int s = 0; s < a.step_count; s++)
    if (a.steps[s].length % 64) return row<Quad>(a);
  tile_row<uint8_t>(a);
}
void STDC_FN(finish)() { release_tiles(); }
#else
void STDC_FN(conv_bf16)(const ConvRow& a) { row<Pair>(a); }
void STDC_FN(conv_u8)(const ConvRow& a) { row<Quad>(a); }
#endif
void STDC_FN(conv_f32)(const ConvRow& a) { row<Float>(a); }
extern const int STDC_FN(block) = kBlock;

}  // namespace stdc
