// Labels straight from the logits at 1/8: bilinear interpolation and argmax, without logits at full size.
#include "launch.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 9;  // of labels that a thread has at once: a cell of an eightfold interpolation has 8 or 9

// A thread has a cell, what lies between two columns of the logits: its pixels read the same columns, so these are
// interpolated between rows once for all of them. Cells run along the lanes, as planes of logits do.
template <int taps>
STDC_KERNEL(kThreads, 1)
upsample_kernel(const STDC_CONSTANT UpsampleArgs a) {
  launch_dependents<kFirst>();
  const int row = block_id().x * kWarps + warp_id();
  const int cell = block_id().y * 32 + lane_id();
  if (row >= a.out_height || cell >= a.width) {
    grid_wait();
    return;
  }
  const int64_t image = block_id().z;
  const int area = a.height * a.width;

  const int base = load_early(a.row_base + row), begin = load_early(a.column_start + cell);
  const int end = load_early(a.column_start + cell + 1);
  int places[taps][taps];
  float down[taps];
  STDC_UNROLL
  for (int i = 0; i < taps; ++i) {
    down[i] = load_early(a.row_weight + row * taps + i);
    const int y = base + i < a.height ? base + i : a.height - 1;
    STDC_UNROLL
    for (int j = 0; j < taps; ++j) places[i][j] = y * a.width + (cell + j < a.width ? cell + j : a.width - 1);
  }
  // Weights of the columns from `first` on.
  float across[kColumns][taps];
  const auto load_across = [&](int first) {
    STDC_UNROLL
    for (int c = 0; c < kColumns; ++c)
      STDC_UNROLL
      for (int j = 0; j < taps; ++j)
        across[c][j] = first + c < end ? load_early(a.column_weight + (first + c) * taps + j) : 0;
  };
  load_across(begin);
  grid_wait();  // the tables are from no kernel
  const float* logits = a.logits + image * a.classes * area;
  uint8_t* labels = a.labels + (image * a.out_height + row) * a.out_width;
  STDC_ROLLED
  for (int first = begin; first < end; first += kColumns) {
    if (first > begin) load_across(first);
    float best[kColumns];
    int label[kColumns];
    STDC_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      best[c] = as_float(0xff800000u);  // minus infinity
      label[c] = 0;
    }
    const float* plane = logits;
    STDC_UNROLL_4  // so that the next classes' logits are on their way
    for (int i = 0; i < a.classes; ++i, plane += area) {
      float column[taps];
      STDC_UNROLL
      for (int j = 0; j < taps; ++j) {
        column[j] = down[0] * load(plane + places[0][j]);
        STDC_UNROLL
        for (int k = 1; k < taps; ++k) column[j] += down[k] * load(plane + places[k][j]);
      }
      STDC_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        float value = across[c][0] * column[0];
        STDC_UNROLL
        for (int j = 1; j < taps; ++j) value += across[c][j] * column[j];
        if (value > best[c]) {
          best[c] = value;
          label[c] = i;
        }
      }
    }
    STDC_UNROLL
    for (int c = 0; c < kColumns; ++c)
      if (first + c < end) store(labels + first + c, static_cast<uint8_t>(label[c]));
  }
}

}  // namespace

void upsample(const UpsampleArgs& a, const Stream& stream) {
  const Index grid{(a.out_height + kWarps - 1) / kWarps, (a.width + 31) / 32, a.images};
  launch(a.taps == 3 ? upsample_kernel<3> : upsample_kernel<2>, "upsample", grid, kThreads, 0, a, stream);
}

}  // namespace gpu
}  // namespace stdc
