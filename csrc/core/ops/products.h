// What ops with products share: weights in panels of one block of output channels, steps over a row, sizes of tasks.
#pragma once

#include <vector>

#include "../bytes.h"
#include "../checker.h"
#include "../layout.h"
#include "../op.h"

namespace stdc {

// Of a convolution that reads two views.
constexpr size_t kMostSteps = 64;

// Elements of one step.
constexpr int64_t kLongest = 1024;

// Weights as the row kernel reads them.
struct PackedWeights {
  Bytes weights;  // [set][block of output channels][elements][block]
  size_t set_bytes = 0, block_bytes = 0;
  int blocks = 0;
  Bytes bias;     // float [blocks * block]
  Bytes multipliers, start;  // of levels: float [blocks * block], int32 [set][blocks * block]

  size_t size() const { return weights.size() + bias.size() + multipliers.size() + start.size(); }
  // What a row of block b takes of it, for one of the sets.
  void give(ConvRow& row, int set, int b, int block) const {
    row.weights = weights.data() + set * set_bytes + b * block_bytes;
    row.bias = bias.floats() + b * block;
    if (!multipliers.size()) return;
    row.multipliers = multipliers.floats() + b * block;
    row.start = reinterpret_cast<const int32_t*>(start.data()) + (set * blocks + b) * block;
  }
};

// The inverse steps of an output's levels, which kernels take a block of.
struct PackedLevels {
  Bytes inverse;
  int zero = 0;

  explicit operator bool() const { return inverse.size(); }
  Levels from(int channel) const { return {inverse.size() ? inverse.floats() + channel : nullptr, zero}; }
};
PackedLevels pack_levels(const Program& program, const View& view, int inverse);

// A kernel of 2 is the sub-pixel form, which has nine sets of weights.
PackedWeights pack_products(const Program& program, int block, const Op& op, int kernel, int weight, int bias,
                            int multipliers = -1);
// Float32 weights as they are, then zeros; all zeros for no weights (-1).
Bytes pack_floats(const Program& program, int weight, int64_t count);

// The runs that each pixel of a row reads; of the sub-pixel form for each parity of row and column.
std::vector<Step> product_steps(const Layout& layout, const Op& op, int kernel, int stride);

// Blocks of output channels.
int blocks_of(const Op& op, int block);
// Fewer blocks a task, rather than bands of fewer than four rows.
void cut_blocks(double work, OpLayout& l);

}  // namespace stdc
