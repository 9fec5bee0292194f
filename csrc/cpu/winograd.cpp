// Transforms of Winograd's F(4x4, 3x3), a tile and a vector of channels at a time; the products between them are
// those of a 1x1 convolution.
#include "simd.h"

namespace stdc {
namespace {

constexpr float kA = 0.75f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;

// Coefficients of the products of (x - point) over all points but one.
STDC_INLINE void input(const V* d, ptrdiff_t from, V* out, ptrdiff_t to) {
  const V d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from], d5 = d[5 * from];
  const V even_a = d4 - kB2 * d2, odd_a = kA * (d3 - kB2 * d1);
  const V even_b = d4 - kA2 * d2, odd_b = kB * (d3 - kA2 * d1);
  out[0] = kA2 * kB2 * d0 - (kA2 + kB2) * d2 + d4;
  out[to] = even_a + odd_a;
  out[2 * to] = even_a - odd_a;
  out[3 * to] = even_b + odd_b;
  out[4 * to] = even_b - odd_b;
  out[5 * to] = kA2 * kB2 * d1 - (kA2 + kB2) * d3 + d5;
}

// Powers of the points.
STDC_INLINE void output(const V* m, ptrdiff_t from, V* out, ptrdiff_t to) {
  const V sum_a = m[from] + m[2 * from], difference_a = kA * (m[from] - m[2 * from]);
  const V sum_b = m[3 * from] + m[4 * from], difference_b = kB * (m[3 * from] - m[4 * from]);
  out[0] = m[0] + sum_a + sum_b;
  out[to] = difference_a + difference_b;
  out[2 * to] = kA2 * sum_a + kB2 * sum_b;
  out[3 * to] = kA2 * difference_a + kB2 * difference_b + m[5 * from];
}

template <class T>
void transform_in(const WinogradIn& a) {
  for (int64_t t = 0; t < a.tiles; t++) {
    const T* in = static_cast<const T*>(a.in) + 4 * t * a.pixel;
    float* out = a.out + t * a.channels;
    const int64_t left = a.columns - 4 * t;
    const bool whole = a.rows == 6 && left >= 6;
    for (int c = 0; c < a.channels; c += kLanes) {
      V d[36], half[36];
      if (whole) {
        STDC_UNROLL for (int i = 0; i < 6; i++)
          STDC_UNROLL for (int j = 0; j < 6; j++) d[6 * i + j] = load(in + i * a.row + j * a.pixel + c);
      } else {
        for (int i = 0; i < 6; i++)
          for (int j = 0; j < 6; j++)
            d[6 * i + j] = i < a.rows && j < left ? load(in + i * a.row + j * a.pixel + c) : V{};
      }
      STDC_UNROLL for (int j = 0; j < 6; j++) input(d + j, 6, half + j, 6);
      STDC_UNROLL for (int i = 0; i < 6; i++) input(half + 6 * i, 1, d + 6 * i, 1);
      STDC_UNROLL for (int e = 0; e < 36; e++) store(out + e * a.position + c, d[e]);
    }
  }
}

template <class T>
void transform_out(const WinogradOut& a) {
  for (int64_t t = 0; t < a.tiles; t++) {
    const int64_t left = a.columns - 4 * t;
    for (int c = 0; c < a.channels; c += kLanes) {
      const int n = a.channels - c < kLanes ? a.channels - c : kLanes;
      const float* in = a.in + t * a.tile + c;
      V m[36], half[24], y[16];
      STDC_UNROLL for (int e = 0; e < 36; e++) m[e] = load(in + e * a.position);
      STDC_UNROLL for (int j = 0; j < 6; j++) output(m + j, 6, half + j, 6);
      STDC_UNROLL for (int i = 0; i < 4; i++) output(half + 6 * i, 1, y + 4 * i, 1);
      const V bias = load_some(a.bias + c, n);
      STDC_UNROLL for (int p = 0; p < 16; p++) {
        y[p] += bias;
        if (a.relu) y[p] = relu(y[p]);
      }
      STDC_UNROLL for (int i = 0; i < 4; i++) {
        if (i >= a.rows) break;
        V sum = {};
        T* out = static_cast<T*>(a.out) + i * a.row + 4 * t * a.pixel + c;
        STDC_UNROLL for (int j = 0; j < 4; j++) {
          if (j >= left) break;
          n == kLanes ? store(out + j * a.pixel, y[4 * i + j]) : store_some(out + j * a.pixel, y[4 * i + j], n);
          sum += y[4 * i + j];
        }
        if (a.sums) {
          float* sums = a.sums + i * a.sums_row + c;
          n == kLanes ? store(sums, load(sums) + sum) : store_some(sums, load_some(sums, n) + sum, n);
        }
      }
    }
  }
}

}  // namespace

void STDC_FN(winograd_in_f32)(const WinogradIn& a) { transform_in<float>(a); }
void STDC_FN(winograd_in_bf16)(const WinogradIn& a) { transform_in<bf16>(a); }
void STDC_FN(winograd_out_f32)(const WinogradOut& a) { transform_out<float>(a); }
void STDC_FN(winograd_out_bf16)(const WinogradOut& a) { transform_out<bf16>(a); }

}  // namespace stdc
