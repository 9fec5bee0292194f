// What a first convolution reads: pixels of raw frames of any size, or of normalised images.
#pragma once

#include "gpu.h"
#include "tile_pixels.cuh"

namespace stdc {
namespace gpu {

constexpr int kStemUnits = 3;  // of 16: a row of taps, of four pixels and colours, of which the last are zero

// A pixel as the network sees it, less the offset.
template <class Args, class Number>
STDC_DEVICE void read_pixel(const Args& a, const Number* image, int y, int x, float (&rgb)[3]) {
  if (a.frame_height == a.height && a.frame_width == a.width) {
    const Number* p = image + (y * a.width + x) * 3;
    STDC_UNROLL
    for (int i = 0; i < 3; ++i) rgb[i] = static_cast<float>(load(p + i)) - a.offset[i];
    return;
  }
  const float fy = y * a.scale_y, fx = x * a.scale_x;
  const int y0 = static_cast<int>(fy), x0 = static_cast<int>(fx);
  const int y1 = y0 + 1 < a.frame_height ? y0 + 1 : a.frame_height - 1;
  const int x1 = x0 + 1 < a.frame_width ? x0 + 1 : a.frame_width - 1;
  const float down = fy - y0, right = fx - x0;
  STDC_UNROLL
  for (int i = 0; i < 3; ++i) {
    const float a0 = static_cast<float>(load(image + (y0 * a.frame_width + x0) * 3 + i));
    const float a1 = static_cast<float>(load(image + (y0 * a.frame_width + x1) * 3 + i));
    const float b0 = static_cast<float>(load(image + (y1 * a.frame_width + x0) * 3 + i));
    const float b1 = static_cast<float>(load(image + (y1 * a.frame_width + x1) * 3 + i));
    const float top = a0 * (1 - right) + a1 * right, low = b0 * (1 - right) + b1 * right;
    rgb[i] = top * (1 - down) + low * down - a.offset[i];
  }
}

// `rows` rows of pixels from (row, column) on, of four colours, the last zero. kTogether pixels of a thread are on
// their way at once.
template <class T, int kThreads, int kTogether, class Number, class Args>
STDC_DEVICE void read_patch(const Args& a, const Divisor& width, int rows, int64_t image, int row, int column,
                            uint32_t at) {
  const Number* from = static_cast<const Number*>(a.image) + image * a.frame_height * a.frame_width * 3;
  const int pixels = rows * width.by;
  STDC_ROLLED
  for (int first = thread_id(); first < pixels; first += kTogether * kThreads) {
    float rgb[kTogether][3];
    STDC_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      const int i = first + k * kThreads, py = divide(i, width), y = row + py;
      const int x = column + i - py * width.by;
      STDC_UNROLL
      for (int c = 0; c < 3; ++c) rgb[k][c] = a.outside[c];
      if (i < pixels && y >= 0 && y < a.height && x >= 0 && x < a.width) read_pixel(a, from, y, x, rgb[k]);
    }
    STDC_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      const int i = first + k * kThreads;
      if (i >= pixels) continue;
      shared_store(at + i * 8, pack<T>(rgb[k][0], rgb[k][1]));
      shared_store(at + i * 8 + 4, pack<T>(rgb[k][2], 0));
    }
  }
}
template <class T, int kThreads, int kTogether, class Args>
STDC_DEVICE void read_patch(const Args& a, const Divisor& width, int rows, int64_t image, int row, int column,
                            uint32_t at) {
  if (a.is_float)
    read_patch<T, kThreads, kTogether, float>(a, width, rows, image, row, column, at);
  else
    read_patch<T, kThreads, kTogether, uint8_t>(a, width, rows, image, row, column, at);
}

}  // namespace gpu
}  // namespace stdc
