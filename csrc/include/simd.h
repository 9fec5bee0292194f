// Vectors of one instruction set, for the files that are compiled once for each. Everything is in an anonymous
// namespace and no STL is used: an inline function with linkage would be one weak symbol for all sets.
#pragma once

#include <string.h>

#include "kernels.h"
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

// GCC warns of its own _mm512_undefined_ps() inside of intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define STDC_INLINE static inline __attribute__((always_inline))
#define STDC_UNROLL _Pragma("GCC unroll 32")

namespace stdc {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2 and NEON
#endif

typedef float V __attribute__((vector_size(4 * kLanes)));
typedef float Vu __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef int16_t S16 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Uu __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint8_t B8 __attribute__((vector_size(kLanes)));
typedef uint16_t H __attribute__((vector_size(2 * kLanes)));
typedef uint16_t Hu __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
struct bf16 {
  uint16_t bits;
};

STDC_INLINE V splat(float x) { return x - V{}; }
STDC_INLINE V load(const float* p) { return *reinterpret_cast<const Vu*>(p); }
STDC_INLINE void store(float* p, V v) { *reinterpret_cast<Vu*>(p) = v; }

STDC_INLINE V load(const bf16* p) {
  // NOTE: GCC makes five instructions of the conversion that is one.
#if defined(__AVX512F__)
  const U u = reinterpret_cast<U>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  const U u = reinterpret_cast<U>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  const U u = __builtin_convertvector(*reinterpret_cast<const Hu*>(p), U);
#endif
  return reinterpret_cast<V>(u << 16);
}

STDC_INLINE V load(const uint8_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
  V v;
  for (int i = 0; i < kLanes; i++) v[i] = p[i];
  return v;
#endif
}

// Round to nearest even, NaN stays NaN.
STDC_INLINE void store(bf16* p, V v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  memcpy(p, &h, sizeof(h));
#else
  const U u = reinterpret_cast<U>(v);
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U nan = reinterpret_cast<U>(v != v);
  *reinterpret_cast<Hu*>(p) = __builtin_convertvector((rounded & ~nan) | ((0x7fc0u | (u >> 16)) & nan), H);
#endif
}

// As levels of inverse steps: rounded to the nearest, ties to even; NaN is the least.
STDC_INLINE B8 to_levels(V v, V inverse, int zero) {
  const V least = splat(zero ? -127.0f : 0.0f), most = splat(zero ? 127.0f : 255.0f);
  v *= inverse;
#if defined(__AVX512F__)
  const __m512 kept = _mm512_min_ps(_mm512_max_ps(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(least)),
                                    reinterpret_cast<__m512>(most));
  const __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(kept), _mm512_set1_epi32(zero));
  return reinterpret_cast<B8>(_mm512_cvtepi32_epi8(i));
#else
  v = v > least ? v : least;
  v = v < most ? v : most;
  // Floats around 3 * 2^22 are whole numbers, so that the sum is rounded.
  const I i = reinterpret_cast<I>(v + splat(12582912.0f)) - 0x4b400000 + zero;
  return __builtin_convertvector(i, B8);
#endif
}
STDC_INLINE void store_levels(uint8_t* p, V v, V inverse, int zero) {
  const B8 levels = to_levels(v, inverse, zero);
  memcpy(p, &levels, sizeof(levels));
}

STDC_INLINE float to_float(float x) { return x; }
STDC_INLINE float to_float(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
STDC_INLINE void put(float* p, float x) { *p = x; }
STDC_INLINE void put(bf16* p, float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// The first n lanes.
template <class T>
STDC_INLINE V load_some(const T* p, int n) {
  T part[kLanes] = {};
  memcpy(part, p, n * sizeof(T));
  return load(part);
}
template <class T>
STDC_INLINE void store_some(T* p, V v, int n) {
  T part[kLanes];
  store(part, v);
  memcpy(p, part, n * sizeof(T));
}

// The first n lanes of channels from c on.
STDC_INLINE void store_levels(uint8_t* p, V v, const Levels& levels, int c, int n) {
  if (n == kLanes) return store_levels(p, v, load(levels.inverse + c), levels.zero);
  const B8 all = to_levels(v, load_some(levels.inverse + c, n), levels.zero);
  memcpy(p, &all, n);
}

// NaN stays NaN, as in torch.
STDC_INLINE V relu(V v) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_max_ps(_mm512_setzero_ps(), reinterpret_cast<__m512>(v)));
#else
  return v < V{} ? V{} : v;
#endif
}

// What a convolution's sum of products is worth.
STDC_INLINE V worth(const ConvRow&, int, V sum) { return sum; }
STDC_INLINE V worth(const ConvRow& a, int lane, I sum) {
#if defined(__AVX512F__)
  const V v = reinterpret_cast<V>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sum)));
#else
  const V v = __builtin_convertvector(sum, V);
#endif
  return v * load(a.multipliers + lane) + load(a.bias + lane);
}

}  // namespace
}  // namespace stdc
