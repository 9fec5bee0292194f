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
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Uu __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
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

// NaN stays NaN, as in torch.
STDC_INLINE V relu(V v) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_max_ps(_mm512_setzero_ps(), reinterpret_cast<__m512>(v)));
#else
  return v < V{} ? V{} : v;
#endif
}

}  // namespace
}  // namespace stdc
