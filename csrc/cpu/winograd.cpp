// Transforms of Winograd's F(4x4, 3x3) and F(4x4, 2x2), a tile and a vector of channels at a time; the products between
// them are those of a 1x1 convolution.
#include "simd.h"

namespace stdc {
namespace {

// What transforms n numbers, `from` apart, to n, and n products to four outputs. The input's coefficients are those of
// the products of (x - point) over all points but one, the output's are the points' powers.
struct Taps3 {
  static constexpr int n = 6;
  static constexpr float a = kPoints[0], b = kPoints[1], a2 = a * a, b2 = b * b;

  STDC_INLINE void input(const V* d, ptrdiff_t from, V* out, ptrdiff_t to) {
    const V d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from], d5 = d[5 * from];
    const V even_a = d4 - b2 * d2, odd_a = a * (d3 - b2 * d1);
    const V even_b = d4 - a2 * d2, odd_b = b * (d3 - a2 * d1);
    out[0] = a2 * b2 * d0 - (a2 + b2) * d2 + d4;
    out[to] = even_a + odd_a;
    out[2 * to] = even_a - odd_a;
    out[3 * to] = even_b + odd_b;
    out[4 * to] = even_b - odd_b;
    out[5 * to] = a2 * b2 * d1 - (a2 + b2) * d3 + d5;
  }
  STDC_INLINE void output(const V* m, ptrdiff_t from, V* out, ptrdiff_t to) {
    const V sum_a = m[from] + m[2 * from], difference_a = a * (m[from] - m[2 * from]);
    const V sum_b = m[3 * from] + m[4 * from], difference_b = b * (m[3 * from] - m[4 * from]);
    out[0] = m[0] + sum_a + sum_b;
    out[to] = difference_a + difference_b;
    out[2 * to] = a2 * sum_a + b2 * sum_b;
    out[3 * to] = a2 * difference_a + b2 * difference_b + m[5 * from];
  }
};

struct Taps2 {
  static constexpr int n = 5;
  static constexpr float a = kPoints2[0], b = kPoints2[1], a2 = a * a, b2 = b * b;

  STDC_INLINE void input(const V* d, ptrdiff_t from, V* out, ptrdiff_t to) {
    const V d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from];
    const V odd_a = d3 - b2 * d1, even_a = a * (d2 - b2 * d0);
    const V odd_b = d3 - a2 * d1, even_b = b * (d2 - a2 * d0);
    out[0] = odd_a + even_a;
    out[to] = odd_a - even_a;
    out[2 * to] = odd_b + even_b;
    out[3 * to] = odd_b - even_b;
    out[4 * to] = a2 * b2 * d0 - (a2 + b2) * d2 + d4;
  }
  STDC_INLINE void output(const V* m, ptrdiff_t from, V* out, ptrdiff_t to) {
    const V sum_a = m[0] + m[from], difference_a = a * (m[0] - m[from]);
    const V sum_b = m[2 * from] + m[3 * from], difference_b = b * (m[2 * from] - m[3 * from]);
    out[0] = sum_a + sum_b;
    out[to] = difference_a + difference_b;
    out[2 * to] = a2 * sum_a + b2 * sum_b;
    out[3 * to] = a2 * difference_a + b2 * difference_b + m[4 * from];
  }
};

// NOTE: columns first, then rows, each loaded right before and stored right after: there are not enough registers for
// a whole tile. Pointers walk, as the compiler would multiply for each position.
template <class Taps, class T>
STDC_INLINE void tile_in(const T* in, ptrdiff_t row, ptrdiff_t pixel, T* out, ptrdiff_t position) {
  constexpr int n = Taps::n;
  V half[n * n];
  STDC_UNROLL for (int j = 0; j < n; j++) {
    V d[n];
    const T* p = in;
    STDC_UNROLL for (int i = 0; i < n; i++, p += row) d[i] = load(p);
    Taps::input(d, 1, half + j, n);
    in += pixel;
  }
  STDC_UNROLL for (int i = 0; i < n; i++) {
    V v[n];
    Taps::input(half + n * i, 1, v, 1);
    STDC_UNROLL for (int j = 0; j < n; j++, out += position) {
      store(out, v[j]);
      __builtin_prefetch(out + 64 / sizeof(T), 1);  // of the channels that follow, to write
    }
  }
}

template <class Taps, class T>
STDC_INLINE void transform_in(const WinogradIn& a) {
  constexpr int n = Taps::n;
  for (int64_t t = 0; t < a.tiles; t++) {
    const T* in = static_cast<const T*>(a.in) + kTile * t * a.pixel;
    T* out = static_cast<T*>(a.out) + t * a.tile;
    const int64_t left = a.columns - kTile * t;
    if (a.rows == n && left >= n) {
      for (int c = 0; c < a.channels; c += kLanes) {
        // The next tile's new columns.
        if (c % (64 / static_cast<int>(sizeof(T))) == 0)
          STDC_UNROLL for (int i = 0; i < n; i++)
            STDC_UNROLL for (int j = n; j < n + kTile; j++) __builtin_prefetch(in + i * a.row + j * a.pixel + c);
        tile_in<Taps>(in + c, a.row, a.pixel, out + c, a.position);
      }
      continue;
    }
    // The rest of an edge is zeros.
    T patch[n * n * kLanes] = {};
    for (int c = 0; c < a.channels; c += kLanes) {
      for (int i = 0; i < a.rows; i++)
        for (int j = 0; j < n && j < left; j++)
          memcpy(patch + (n * i + j) * kLanes, in + i * a.row + j * a.pixel + c, sizeof(T) * kLanes);
      tile_in<Taps>(patch, n * kLanes, kLanes, out + c, a.position);
    }
  }
}

template <class Taps, class T>
STDC_INLINE void transform_out(const WinogradOut& a) {
  constexpr int n = Taps::n;
  for (int64_t t = 0; t < a.tiles; t++) {
    const int64_t left = a.columns - kTile * t;
    for (int c = 0; c < a.channels; c += kLanes) {
      const int count = a.channels - c < kLanes ? a.channels - c : kLanes;
      const float* in = a.in + t * a.tile + c;
      const V bias = load(a.bias + c);
      V half[n * kTile];
      STDC_UNROLL for (int i = 0; i < n; i++) {
        V m[n];
        STDC_UNROLL for (int j = 0; j < n; j++, in += a.position) m[j] = load(in);
        Taps::output(m, 1, half + kTile * i, 1);
      }
      V y[kTile * kTile];
      STDC_UNROLL for (int j = 0; j < kTile; j++) Taps::output(half + j, kTile, y + j, kTile);
      STDC_UNROLL for (int i = 0; i < kTile; i++) {
        if (i >= a.rows) break;
        V sum = {};
        const ptrdiff_t place = i * a.row + kTile * t * a.pixel + c;
        STDC_UNROLL for (int j = 0; j < kTile; j++) {
          if (j >= left) break;
          V v = y[kTile * i + j] + bias;
          if (a.relu) v = relu(v);
          if (a.levels) {
            store_levels(static_cast<uint8_t*>(a.out) + place + j * a.pixel, v, *a.levels, c, count);
          } else {
            T* out = static_cast<T*>(a.out) + place + j * a.pixel;
            count == kLanes ? store(out, v) : store_some(out, v, count);
          }
          sum += v;
        }
        if (a.sums) {
          float* sums = a.sums + i * a.sums_row + c;
          count == kLanes ? store(sums, load(sums) + sum) : store_some(sums, load_some(sums, count) + sum, count);
        }
      }
    }
  }
}

}  // namespace

void STDC_FN(winograd3_in_f32)(const WinogradIn& a) { transform_in<Taps3, float>(a); }
void STDC_FN(winograd3_in_bf16)(const WinogradIn& a) { transform_in<Taps3, bf16>(a); }
void STDC_FN(winograd3_out_f32)(const WinogradOut& a) { transform_out<Taps3, float>(a); }
void STDC_FN(winograd3_out_bf16)(const WinogradOut& a) { transform_out<Taps3, bf16>(a); }
void STDC_FN(winograd2_in_f32)(const WinogradIn& a) { transform_in<Taps2, float>(a); }
void STDC_FN(winograd2_in_bf16)(const WinogradIn& a) { transform_in<Taps2, bf16>(a); }
void STDC_FN(winograd2_out_f32)(const WinogradOut& a) { transform_out<Taps2, float>(a); }
void STDC_FN(winograd2_out_bf16)(const WinogradOut& a) { transform_out<Taps2, bf16>(a); }

}  // namespace stdc
