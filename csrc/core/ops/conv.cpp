// Convolutions: 1x1, 3x3 and the sub-pixel form 2x2, of one or two inputs, direct or by Winograd's tiles.
#include <algorithm>
#include <cstring>

#include "../views.h"
#include "products.h"
#include "winograd.h"

namespace stdc {
namespace {

class Conv : public Op {
 public:
  Conv() { starts_stage = true; }

  void parse(Line& l) override {
    kernel_ = l.number(1, 3);
    stride_ = l.number(1, 2);
    relu_ = l.number(kNone, kRelu) == kRelu;
    weight_ = l.weight();
    bias_ = l.optional_weight();
    mean = l.optional_view();
    if (mean) writes.push_back(mean);
    if (l.version() < 3) return;
    multipliers_ = l.optional_weight();
    levels_ = l.optional_weight();
  }

  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.kernel(*this, c.kernels.conv, c.program.dtype_of(in));
    int64_t total = 0;
    for (const View& v : inputs) {
      total += v.channels;
      c.need(c.stride(v) == c.stride(in), *this, "inputs of different sizes");
    }
    c.factors(*this, weight_, multipliers_);
    c.need(c.store(output) == Store::act || c.store(output) == Store::logits || c.store(output) == Store::levels, *this,
           "output is no map");
    c.levels(*this, output, levels_);
    const Weight& weight = c.program.weights[weight_];
    const auto& s = weight.shape;
    // The stem's maps have a fourth channel, without weights.
    const int64_t extra = total == 4 && s.size() == 4 && s[1] == 3 ? 1 : 0;
    const bool shape = subpixel() ? s.size() == 6 && s[0] == 3 && s[1] == 3 && s[2] == output.channels &&
                                        s[3] == total && s[4] == 2 && s[5] == 2
                                  : s.size() == 4 && s[0] == output.channels && s[1] == total - extra &&
                                        s[2] == kernel_ && s[3] == kernel_;
    c.need(shape, *this, "weights of another shape");
    if (subpixel())
      c.need(stride_ == 1 && inputs.size() == 1 && c.stride(in) == 2 * c.stride(output), *this, "sub-pixel form");
    else
      c.need(c.stride(output) == stride_ * c.stride(in), *this, "sizes");
    c.floats(*this, bias_, output.channels);
    if (mean) c.need(c.store(mean) == Store::vector && mean.channels == output.channels, *this, "mean");
  }

  size_t pack(const Program& program, const KernelSet& kernels) override {
    packed_levels_ = pack_levels(program, output, levels_);
    if (tiled() && multipliers_ < 0 && Winograd::pays(program, kernels, *this, kernel_))
      winograd_ = Winograd(program, kernels, *this, kernel_, weight_, bias_);
    // Tiles leave the last row and column of odd sizes to the weights of their own.
    if (!winograd_ || subpixel()) packed_ = pack_products(program, kernels.block, *this, kernel_, weight_, bias_, multipliers_);
    return packed_.size() + winograd_.bytes() + packed_levels_.inverse.size();
  }

  const char* form() const override { return multipliers_ >= 0 ? "int8" : !winograd_ ? "direct" : subpixel() ? "F(4x4, 2x2)" : "F(4x4, 3x3)"; }

  void measure(const Layout& layout, OpLayout& l) const override {
    Op::measure(layout, l);
    l.blocks = blocks_of(*this, layout.kernels.block);
    int64_t elements = 0;
    for (const View& v : inputs) elements += v.channels;
    const double columns = static_cast<double>(layout.place(output).columns);
    l.row_work = columns * layout.kernels.block * kernel_ * kernel_ * elements;
    if (winograd_) l.row_work /= subpixel() ? 2 : 3;  // fewer products, and the transforms
  }

  void cut(const Layout& layout, double work, OpLayout& l) const override {
    if (winograd_) return winograd_.cut(layout, *this, work, l);
    const Buffer& out = layout.program.buffer(output);
    if (out.store != Store::logits) {  // labels need all classes
      if (out.stride > 8) {
        // Few rows and large weights: a task keeps one block's weights in the cache.
        l.part = 1;
        l.band = std::max<int64_t>(1, static_cast<int64_t>(work / l.row_work));
      } else {
        cut_blocks(work, l);
      }
    }
    if (subpixel()) l.band += l.band % 2;  // it computes pairs of rows
  }

  void lay_out(const Layout& layout, OpLayout& l) const override {
    l.steps = product_steps(layout, *this, kernel_, stride_);
    if (winograd_) winograd_.lay_out(layout, *this, l);
  }

  Rows needs(const Layout&, Rows out) const override {
    if (subpixel()) return {out.first / 2 - 1, (out.last - 1) / 2 + 2};
    const int64_t first = out.first * stride_, last = (out.last - 1) * stride_ + 1;
    return {first - kernel_ / 2, last + kernel_ / 2};
  }

  void prepare(const Views& v) const override { winograd_.prepare(v, *this); }

  void run(const Views& v) const override {
    if (!winograd_) return direct(v, false);
    winograd_.run(v, *this, relu_, packed_levels_);
    const BufferPlace& out = v.place(output);
    if (subpixel() && (out.columns % 2 || (out.rows % 2 && v.task.rows[1] == out.rows))) direct(v, true);
  }

 private:
  // edges: only the last row and column of odd sizes.
  void direct(const Views& v, bool edges) const {
    const bool dense = v.store(output) == Store::logits;
    const BufferPlace& out = v.place(output);
    const int block = v.kernels.block;
    const auto kernel = v.kernels.conv[v.program.dtype_of(inputs[0])];
    const std::vector<Step>& steps = v.own.steps;
    const size_t item = dense ? sizeof(float) : out.item;
    Step both[kMostSteps];
    ConvRow row{};
    row.step_count = static_cast<int>(steps.size()) / (subpixel() ? 4 : 1);
    row.relu = relu_;
    row.to = dense ? DType::f32 : v.program.dtype_of(output);
    row.ahead = true;
    for (int b = v.task.blocks[0]; b < v.task.blocks[1]; b++) {
      const int first = b * block;
      row.channels = std::min(block, output.channels - first);
      if (packed_levels_) row.levels = packed_levels_.from(first);
      for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
        char* to = dense ? reinterpret_cast<char*>(v.logits(y) + output.offset) : v.at(output, y, 0);
        char* const begin = to + first * item;
        if (mean) {
          row.sums = v.sums(v.task.op, y) + first;
          std::memset(row.sums, 0, row.channels * sizeof(float));
        }
        if (!subpixel()) {
          row.in = v.at(inputs[0], y * stride_, 0);
          row.steps = inputs.size() > 1 ? with_second(v, y * stride_, both) : steps.data();
          packed_.give(row, 0, b, block);
          row.out = begin;
          row.out_step = out.channels;
          row.pixels = out.columns;
          kernel(row);
          continue;
        }
        // Even and odd columns; the last one of an odd width has weights of its own, and so have rows.
        const int last = y == out.rows - 1 && out.rows % 2;
        const int row_set = last ? 2 : static_cast<int>(y % 2);
        const size_t pixel = out.channels * item;
        const auto columns = [&](int parity, int set, int64_t from, int64_t count) {
          if (count <= 0) return;
          row.in = v.at(inputs[0], y / 2, from);
          row.steps = steps.data() + (2 * (y % 2) + parity) * row.step_count;
          packed_.give(row, 3 * row_set + set, b, block);
          row.out = begin + (2 * from + parity) * pixel;
          row.out_step = 2 * out.channels;
          row.pixels = count;
          kernel(row);
        };
        const int64_t half = out.columns / 2;
        if (!edges || last) {
          columns(0, 0, 0, half);
          columns(1, 1, 0, half);
        }
        if (out.columns % 2) columns(0, 2, half, 1);
      }
      if (!dense) v.border(output, first, row.channels);
    }
    if (dense && v.layout.key.label_height)
      for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++)
        v.kernels.best[DType::f32](
            {v.logits(y), out.channels, static_cast<int>(out.channels), out.columns, v.best(y)});
  }

  bool subpixel() const { return kernel_ == 2; }
  bool tiled() const { return subpixel() || (kernel_ == 3 && stride_ == 1); }

  // Steps that read the second input's row y, whose pitch is another.
  const Step* with_second(const Views& v, int64_t y, Step* steps) const {
    std::copy(v.own.steps.begin(), v.own.steps.end(), steps);
    int64_t left = kernel_ * kernel_ * inputs[0].channels;  // elements of the first input
    for (size_t i = 0; i < v.own.steps.size(); i++) {
      if (left <= 0) steps[i].offset += y * (v.place(inputs[1]).pitch - v.place(inputs[0]).pitch);
      left -= steps[i].length;
    }
    return steps;
  }

  int kernel_ = 0, stride_ = 1;
  bool relu_ = false;
  int weight_ = -1, bias_ = -1, multipliers_ = -1, levels_ = -1;
  PackedWeights packed_;
  PackedLevels packed_levels_;
  Winograd winograd_;  // in place of them, or not there
};

}  // namespace

std::unique_ptr<Op> make_conv() { return std::make_unique<Conv>(); }

}  // namespace stdc
