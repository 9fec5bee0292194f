// What attention does to a map before a convolution reads it: times a vector, plus a vector or a map.
#include "../checker.h"
#include "../views.h"
#include "products.h"

namespace stdc {
namespace {

class Prologue : public Op {
 public:
  void parse(Line& l) override {
    scale_ = l.optional_view();
    add_ = l.optional_view();
    for (const View& v : {scale_, add_})
      if (v) reads.push_back(v);
    if (l.version() >= 3) levels_ = l.optional_weight();
    starts_stage = levels_ >= 0;  // as the convolution that it makes levels for
  }

  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.kernel(*this, c.kernels.prologue);
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.need(c.store(in) == Store::act && c.stride(in) == c.stride(output) &&
               in.channels == output.channels,
           *this, "sizes");
    c.need(c.store(output) == Store::act || c.store(output) == Store::levels, *this, "output is no map");
    c.levels(*this, output, levels_);
    if (scale_) c.need(c.store(scale_) == Store::vector && scale_.channels == output.channels, *this, "scale");
    if (add_)
      c.need(add_.channels == output.channels &&
                 (c.store(add_) == Store::vector || (c.store(add_) == Store::act && c.stride(add_) == c.stride(in))),
             *this, "add");
  }

  size_t pack(const Program& program, const KernelSet&) override {
    packed_levels_ = pack_levels(program, output, levels_);
    return packed_levels_.inverse.size();
  }

  void run(const Views& v) const override {
    PrologueRow row{};
    const Levels levels = packed_levels_.from(0);
    if (packed_levels_) row.levels = &levels;
    row.in_step = v.place(inputs[0]).channels;
    row.out_step = v.place(output).channels;
    row.pixels = v.place(output).columns;
    row.channels = output.channels;
    if (scale_) row.scale = v.vector(scale_);
    const bool map = add_ && v.store(add_) == Store::act;
    if (add_ && !map) row.add = v.vector(add_);
    if (map) row.add_step = v.place(add_).channels;
    for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
      row.in = v.at(inputs[0], y, 0);
      row.out = v.at(output, y, 0);
      if (map) row.add_map = v.at(add_, y, 0);
      v.kernels.prologue[v.dtype](row);
    }
    v.border(output, 0, output.channels);
  }

 private:
  View scale_, add_;
  int levels_ = -1;
  PackedLevels packed_levels_;
};

}  // namespace

std::unique_ptr<Op> make_prologue() { return std::make_unique<Prologue>(); }

}  // namespace stdc
