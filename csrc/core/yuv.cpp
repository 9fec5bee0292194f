// Pictures of videos to RGB, row by row: which rows of chroma lie above and below each row of luma.
#include <algorithm>
#include <vector>

#include "engine.h"
#include "kernel_set.h"

namespace stdc {

void yuv_to_rgb(const Yuv& p, uint8_t* rgb) {
  const RowKernel<YuvRow> kernel = kernel_set(best_isa()).yuv[DType::u8];
  std::vector<float> scratch(yuv_scratch(p.width));
  YuvRow row{};
  row.step = p.step, row.ratio = p.ratio_x, row.centred = p.centred, row.wide = p.wide;
  row.luma = p.luma, row.red_v = p.red_v, row.green_u = p.green_u, row.green_v = p.green_v, row.blue_u = p.blue_u;
  std::copy(p.offset, p.offset + 3, row.offset);
  row.table = p.table, row.steps = p.steps;
  row.scratch = scratch.data();
  row.pixels = p.width;
  const auto at = [](const void* plane, int64_t bytes) { return static_cast<const char*>(plane) + bytes; };
  const int64_t last = (p.height + p.ratio_y - 1) / p.ratio_y - 1;
  for (int64_t y = 0; y < p.height; y++) {
    // In quarters of a row of chroma, from its first one on.
    const int64_t quarters = p.ratio_y == 1 ? 4 * y : 2 * y - 1;
    const int64_t above = quarters < 0 ? 0 : std::min(quarters / 4, last), below = std::min(above + 1, last);
    row.below = quarters < 0 ? 0.0f : static_cast<float>(quarters % 4) / 4;
    const bool between = row.below > 0 && below > above;
    if (!between) row.below = 0;
    row.y = at(p.y, y * p.y_row);
    row.u[0] = at(p.u, above * p.chroma_row), row.v[0] = at(p.v, above * p.chroma_row);
    row.u[1] = between ? at(p.u, below * p.chroma_row) : row.u[0];
    row.v[1] = between ? at(p.v, below * p.chroma_row) : row.v[0];
    row.out = rgb + 3 * y * p.width;
    kernel(row);
  }
}

}  // namespace stdc
