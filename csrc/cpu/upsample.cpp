// Labels straight from the logits at 1/8: bilinear interpolation and argmax, in one pass.
//
// Interpolated logits are convex combinations of the neighbours': where one class is the best of all neighbours,
// it is the best between them, so that only pixels at the edges of regions are computed.
#include "simd.h"

namespace stdc {
namespace {

constexpr int kStrip = 16;  // output pixels at once

// Pixels [first, last), between whose neighbours the best class changes.
STDC_INLINE void strip(const LabelRow& a, const float* mixed, int64_t pitch, int64_t first, int count) {
  float best[kStrip];
  int32_t found[kStrip];
  float w[3][kStrip];
  int32_t at[kStrip];
  for (int i = 0; i < kStrip; i++) {
    const int64_t x = first + (i < count ? i : count - 1);
    at[i] = a.columns[x];
    for (int k = 0; k < 3; k++) w[k][i] = k < a.column_count ? a.column_weights[k * a.pixels + x] : 0;
  }
  for (int c = 0; c < a.classes; c++) {
    const float* line = mixed + c * pitch;
    float value[kStrip];
    if (a.column_count == 2) {
      for (int i = 0; i < kStrip; i++) value[i] = line[at[i]] * w[0][i] + line[at[i] + 1] * w[1][i];
    } else {
      for (int i = 0; i < kStrip; i++)
        value[i] = line[at[i]] * w[0][i] + line[at[i] + 1] * w[1][i] + line[at[i] + 2] * w[2][i];
    }
    if (c == 0) {
      for (int i = 0; i < kStrip; i++) best[i] = value[i], found[i] = 0;
    } else {
      for (int i = 0; i < kStrip; i++) {
        const bool better = value[i] > best[i];
        best[i] = better ? value[i] : best[i];
        found[i] = better ? c : found[i];
      }
    }
  }
  for (int i = 0; i < count; i++) a.out[first + i] = static_cast<uint8_t>(found[i]);
}

}  // namespace

void STDC_FN(labels)(const LabelRow& a) {
  // Which columns have one best class over all rows that take part; made of bytes, so that they are compared fast.
  const int64_t pitch = a.width + 3;
  bool have = false;
  int64_t x = 0;
  while (x < a.pixels) {
    const int32_t column = a.columns[x];
    int64_t end = x + 1;
    while (end < a.pixels && a.columns[end] == column) end++;
    const uint8_t label = a.best[0][column];
    bool same = true;
    for (int r = 0; r < a.row_count; r++)
      for (int k = 0; k < a.column_count; k++) {
        const int64_t at = column + k < a.width ? column + k : a.width - 1;
        same &= a.best[r][at] == label;
      }
    if (same) {
      memset(a.out + x, label, end - x);
      x = end;
      continue;
    }
    if (!have) {
      // The row between the rows, class by class; past its end the last column again.
      have = true;
      for (int64_t i = 0; i < a.width; i++)
        for (int c = 0; c < a.classes; c++) {
          float v = a.rows[0][i * a.step + c] * a.weights[0];
          for (int r = 1; r < a.row_count; r++) v += a.rows[r][i * a.step + c] * a.weights[r];
          a.scratch[c * pitch + i] = v;
        }
      for (int c = 0; c < a.classes; c++)
        for (int i = 0; i < 3; i++) a.scratch[c * pitch + a.width + i] = a.scratch[c * pitch + a.width - 1];
    }
    for (; x < end; x += kStrip) strip(a, a.scratch, pitch, x, end - x < kStrip ? end - x : kStrip);
    x = end;
  }
}

// Best class of each pixel, the lowest of a tie.
void STDC_FN(best)(const float* logits, ptrdiff_t step, int classes, int64_t pixels, uint8_t* out) {
  for (int64_t x = 0; x < pixels; x++) {
    const float* p = logits + x * step;
    float best = p[0];
    int found = 0;
    for (int c = 1; c < classes; c++) {
      found = p[c] > best ? c : found;
      best = p[c] > best ? p[c] : best;
    }
    out[x] = static_cast<uint8_t>(found);
  }
}

}  // namespace stdc
