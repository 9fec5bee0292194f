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

  size_t size() const { return weights.size() + bias.size(); }
};

// A kernel of 2 is the sub-pixel form, which has nine sets of weights.
PackedWeights pack_products(const Program& program, int block, const Op& op, int kernel, int weight, int bias);
// Float32 weights as they are, then zeros; all zeros for no weights (-1).
Bytes pack_floats(const Program& program, int weight, int64_t count);

// The runs that each pixel of a row reads; of the sub-pixel form for each parity of row and column.
std::vector<Step> product_steps(const Layout& layout, const Op& op, int kernel, int stride);

// Blocks of output channels.
int blocks_of(const Op& op, int block);
// Fewer blocks a task, rather than bands of fewer than four rows.
void cut_blocks(double work, OpLayout& l);

}  // namespace stdc
