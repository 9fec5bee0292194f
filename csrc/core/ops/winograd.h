// Convolutions by Winograd's tiles: where they pay, their weights, and their tasks.
#pragma once

#include "../views.h"
#include "products.h"

namespace stdc {

// 4x4 outputs from n x n inputs by n * n products. A sub-pixel convolution is four convolutions of 2x2 taps, one for
// each parity of row and column.
class Winograd {
 public:
  // Whether tiles are faster than direct products for a convolution that they can do: of one input, 3x3 of stride 1 or
  // sub-pixel (2).
  static bool pays(const Program& program, const KernelSet& kernels, const Op& op, int kernel);

  Winograd() = default;
  Winograd(const Program& program, const KernelSet& kernels, const Op& op, int kernel, int weight, int bias);
  explicit operator bool() const { return taps_ > 0; }
  size_t bytes() const { return weights_.size() + bias_.size(); }

  // Tiles at once, and the size of a task; whether inputs are transformed by tasks of their own.
  void cut(const Layout& layout, const Op& op, double work, OpLayout& l) const;
  // Scratch memory of a task.
  void lay_out(const Layout& layout, const Op& op, OpLayout& l) const;
  // One task: transforms some rows of the input, or computes some of the output.
  void prepare(const Views& views, const Op& op) const;
  void run(const Views& views, const Op& op, bool relu, const PackedLevels& levels) const;

 private:
  class Task;

  int positions() const { return (taps_ + kTile - 1) * (taps_ + kTile - 1); }
  int phases() const { return taps_ == 2 ? 4 : 1; }
  int step() const { return taps_ == 2 ? 2 : 1; }  // output rows a row of a phase

  int taps_ = 0;
  size_t set_bytes_ = 0, block_bytes_ = 0, position_bytes_ = 0;  // of a phase, of a block, of a position
  Bytes weights_;  // [phase][block of output channels][position][channels][block], in the dtype of the maps
  Bytes bias_;
};

}  // namespace stdc
