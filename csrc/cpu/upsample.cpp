// Labels straight from the logits at 1/8: bilinear interpolation and argmax, in one pass.
//
// Interpolated logits are convex combinations of the neighbours': where one class is the best of all neighbours,
// it is the best between them, so that only pixels at the edges of regions are computed.
#include "simd.h"

namespace stdc {
namespace {

constexpr int kStrip = 8;  // output pixels at once: as many lie between two logits at 1/8
constexpr int kMostClasses = 256;
typedef float S __attribute__((vector_size(4 * kStrip)));
typedef int32_t N __attribute__((vector_size(4 * kStrip)));

// Pixels [first, first + count) between the same `taps` columns of logits, class by class.
template <int kTaps>
STDC_INLINE void strip(const LabelRow& a, const float (*columns)[kMostClasses], int64_t first, int count) {
  S w[kTaps] = {};
  for (int k = 0; k < kTaps; k++) memcpy(&w[k], a.column_weights + k * a.pixels + first, count * sizeof(float));
  S best;
  N found = {};
  for (int c = 0; c < a.classes; c++) {
    S value = columns[0][c] * w[0];
    STDC_UNROLL for (int k = 1; k < kTaps; k++) value += columns[k][c] * w[k];
    if (c == 0) {
      best = value;
      continue;
    }
    const N better = value > best;
    best = better ? value : best;
    found = better ? N{} + c : found;
  }
  for (int i = 0; i < count; i++) a.out[first + i] = static_cast<uint8_t>(found[i]);
}

// Whether one class is the best of all logits that take part from this column on.
STDC_INLINE bool uniform(const LabelRow& a, int64_t column, int taps) {
  const uint8_t label = a.best[0][column];
  const int64_t last = column + taps < a.width ? column + taps : a.width;
  for (int r = 0; r < a.row_count; r++)
    for (int64_t x = column; x < last; x++)
      if (a.best[r][x] != label) return false;
  return true;
}

}  // namespace

void STDC_FN(labels_f32)(const LabelRow& a) {
  if (!a.same_rows)
    for (int r = 0; r < a.run_count; r++) a.uniform[r] = uniform(a, a.columns[a.runs[r]], a.taps[r]);
  for (int r = 0; r < a.run_count; r++) {
    const int64_t first = a.runs[r], last = a.runs[r + 1];
    const int64_t column = a.columns[first];
    if (a.uniform[r]) {
      // Together with what follows and is the same: regions are large, runs are not.
      const uint8_t label = a.best[0][column];
      while (r + 1 < a.run_count && a.uniform[r + 1] && a.best[0][a.columns[a.runs[r + 1]]] == label) r++;
      memset(a.out + first, label, a.runs[r + 1] - first);
      continue;
    }
    // The logits of these columns, between the rows.
    float columns[3][kMostClasses];
    const int taps = a.taps[r];
    for (int k = 0; k < taps; k++) {
      const ptrdiff_t at = (column + k < a.width ? column + k : a.width - 1) * a.step;
      for (int c = 0; c < a.classes; c++) columns[k][c] = a.rows[0][at + c] * a.weights[0];
      for (int row = 1; row < a.row_count; row++)
        for (int c = 0; c < a.classes; c++) columns[k][c] += a.rows[row][at + c] * a.weights[row];
    }
    for (int64_t x = first; x < last; x += kStrip) {
      const int count = last - x < kStrip ? static_cast<int>(last - x) : kStrip;
      taps == 3 ? strip<3>(a, columns, x, count) : strip<2>(a, columns, x, count);
    }
  }
}

void STDC_FN(best_f32)(const BestRow& a) {
  for (int64_t x = 0; x < a.pixels; x++) {
    const float* p = a.logits + x * a.step;
    float best = p[0];
    int found = 0;
    for (int c = 1; c < a.classes; c++) {
      found = p[c] > best ? c : found;
      best = p[c] > best ? p[c] : best;
    }
    a.out[x] = static_cast<uint8_t>(found);
  }
}

}  // namespace stdc
