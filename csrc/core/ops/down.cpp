// The entry of a stage: 1x1 and ReLU, then depthwise 3x3 stride 2 and average pool 3x3 stride 2 of the map between,
// which lives in a task's scratch memory only.
#include <algorithm>
#include <cstring>

#include "../views.h"
#include "products.h"

namespace stdc {
namespace {

class Down : public Op {
 public:
  void parse(Line& l) override {
    pooled_ = l.optional_view();
    weight_ = l.weight();
    bias_ = l.optional_weight();
    depthwise_weight_ = l.weight();
    depthwise_bias_ = l.optional_weight();
    count_include_pad_ = l.number(0, 1);
    if (pooled_) writes.push_back(pooled_);
    if (l.version() < 3) return;
    multipliers_ = l.optional_weight();
    levels_ = l.optional_weight();
    pooled_levels_ = l.optional_weight();
  }

  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.kernel(*this, c.kernels.conv, c.program.dtype_of(in));
    c.kernel(*this, c.kernels.down);
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.need(map(c, output) && c.stride(output) == 2 * c.stride(in), *this, "sizes");
    c.factors(*this, weight_, multipliers_);
    c.levels(*this, output, levels_);
    const Weight& weight = c.program.weights[weight_];
    const auto& s = weight.shape;
    c.need(s.size() == 4 && s[0] == output.channels && s[1] == in.channels && s[2] == 1 && s[3] == 1, *this,
           "weights of another shape");
    c.floats(*this, bias_, output.channels);
    c.floats(*this, depthwise_weight_, 9 * output.channels);
    c.floats(*this, depthwise_bias_, output.channels);
    if (!pooled_) return;
    c.need(map(c, pooled_) && pooled_.channels == output.channels && c.stride(pooled_) == c.stride(output), *this,
           "pool");
    c.levels(*this, pooled_, pooled_levels_);
  }

  size_t pack(const Program& program, const KernelSet& kernels) override {
    const int channels = output.channels, block = kernels.block;
    packed_ = pack_products(program, block, *this, 1, weight_, bias_, multipliers_);
    packed_levels_ = pack_levels(program, output, levels_);
    if (pooled_) packed_pooled_levels_ = pack_levels(program, pooled_, pooled_levels_);
    // [block of channels][9][channels of the block]
    const auto* from = static_cast<const float*>(program.weights[depthwise_weight_].data);
    packed_depthwise_ = zeros(static_cast<size_t>(channels) * 9 * sizeof(float));
    auto* to = reinterpret_cast<float*>(packed_depthwise_.data());
    for (int first = 0; first < channels; first += block) {
      const int count = std::min(block, channels - first);
      for (int t = 0; t < 9; t++)
        for (int c = 0; c < count; c++) *to++ = from[(first + c) * 9 + t];
    }
    packed_depthwise_bias_ = pack_floats(program, depthwise_bias_, channels);
    return packed_.size() + packed_depthwise_.size() + packed_depthwise_bias_.size() +
           packed_levels_.inverse.size() + packed_pooled_levels_.inverse.size();
  }

  void measure(const Layout& layout, OpLayout& l) const override {
    Op::measure(layout, l);
    l.blocks = blocks_of(*this, layout.kernels.block);
    const int64_t elements = inputs[0].channels;
    l.row_work = static_cast<double>(layout.place(output).columns) * layout.kernels.block * (4 * elements + 40);
  }

  // Each band computes the row above it anew: as many rows as the second-level cache has room for, as long
  // as there is a task for each thread; then blocks.
  void cut(const Layout& layout, double work, OpLayout& l) const override {
    const int64_t cached = kScratch / (2 * pitch(layout)), shared = l.rows * l.blocks / (4 * layout.key.threads);
    l.band = std::clamp<int64_t>(std::min(cached, shared), 4, std::max<int64_t>(4, l.rows));
    l.part = std::clamp(static_cast<int>(work / (l.row_work * static_cast<double>(l.band))), 1, l.blocks);
  }

  void lay_out(const Layout& layout, OpLayout& l) const override {
    l.steps = product_steps(layout, *this, 1, 1);
    l.scratch = (2 * l.band + 1) * pitch(layout) + 64;
  }

  Rows needs(const Layout&, Rows out) const override { return {2 * out.first - 1, 2 * out.last}; }

  void run(const Views& v) const override {
    const View& in = inputs[0];
    const BufferPlace& from = v.place(in);
    const BufferPlace& out = v.place(output);
    const int block = v.kernels.block;
    const int64_t pitch = (from.columns + 2) * block;  // of the map between
    const int64_t top = 2 * static_cast<int64_t>(v.task.rows[0]) - 1;
    const auto multiply = v.kernels.conv[v.program.dtype_of(in)];
    const auto between = [&](int64_t y) { return v.scratch + (y - top) * pitch * v.size; };
    for (int b = v.task.blocks[0]; b < v.task.blocks[1]; b++) {
      const int first = b * block;
      const int channels = std::min(block, output.channels - first);
      ConvRow row{};
      row.steps = v.own.steps.data();
      row.step_count = static_cast<int>(v.own.steps.size());
      packed_.give(row, 0, b, block);
      row.to = v.dtype;
      row.out_step = block;
      row.pixels = from.columns;
      row.channels = channels;
      row.relu = true;
      row.ahead = true;
      for (int64_t y = top; y < 2 * static_cast<int64_t>(v.task.rows[1]); y++) {
        if (y < 0 || y >= from.rows) {
          std::memset(between(y), 0, pitch * v.size);
          continue;
        }
        std::memset(between(y), 0, block * v.size);
        std::memset(between(y) + (from.columns + 1) * block * v.size, 0, block * v.size);
        row.in = v.at(in, y, 0);
        row.out = between(y) + block * v.size;
        multiply(row);
      }
      DownRow last{};
      const Levels levels = packed_levels_.from(first), pooled_levels = packed_pooled_levels_.from(first);
      if (packed_levels_) last.levels = &levels;
      if (packed_pooled_levels_) last.pooled_levels = &pooled_levels;
      last.in_step = block;
      last.weights = packed_depthwise_.floats() + 9 * first;
      last.bias = packed_depthwise_bias_.floats() + first;
      last.out_step = out.channels;
      last.pixels = out.columns;
      last.width = from.columns;
      last.channels = channels;
      last.count_include_pad = count_include_pad_;
      for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
        for (int i = 0; i < 3; i++) last.in[i] = between(2 * y - 1 + i);
        last.rows_inside = 3 - (y == 0) - (2 * y + 1 >= from.rows);
        last.out = v.at(output, y, 0, first);
        if (pooled_) {
          last.pooled = v.at(pooled_, y, 0, first);
          last.pooled_step = v.place(pooled_).channels;
        }
        v.kernels.down[v.dtype](last);
      }
      v.border(output, first, channels);
      if (pooled_) v.border(pooled_, first, channels);
    }
  }

 private:
  static constexpr int64_t kScratch = 576 << 10;

  // Bytes of a row of the map between.
  int64_t pitch(const Layout& layout) const {
    return (layout.place(inputs[0]).columns + 2) * layout.kernels.block * traits(layout.program.dtype).bytes;
  }

  static bool map(const Checker& c, const View& v) { return c.store(v) == Store::act || c.store(v) == Store::levels; }

  View pooled_;
  int multipliers_ = -1, levels_ = -1, pooled_levels_ = -1;
  int weight_ = -1, bias_ = -1, depthwise_weight_ = -1, depthwise_bias_ = -1;
  bool count_include_pad_ = true;
  PackedWeights packed_;
  PackedLevels packed_levels_, packed_pooled_levels_;
  Bytes packed_depthwise_, packed_depthwise_bias_;
};

}  // namespace

std::unique_ptr<Op> make_down() { return std::make_unique<Down>(); }

}  // namespace stdc
