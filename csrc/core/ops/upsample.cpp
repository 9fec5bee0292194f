// Labels from the logits: interpolation and argmax.
#include <algorithm>

#include "../checker.h"
#include "../views.h"

namespace stdc {
namespace {

class Upsample : public Op {
 public:
  Upsample() { labels_only = true; }

  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.only(*this, "second labels");
    c.need(in.buffer == c.program.output.buffer, *this, "second labels");
    c.need(c.store(in) == Store::logits && c.store(output) == Store::labels && c.whole(in) && in.channels <= 256, *this,
           "no logits");
  }

  void measure(const Layout& layout, OpLayout& l) const override {
    l.rows = std::max<int64_t>(1, layout.key.label_height);
    l.row_work = std::max<int64_t>(1, layout.key.label_width) * 16.0;
  }

  void lay_out(const Layout& layout, OpLayout& l) const override { l.scratch = layout.label_columns.runs.size(); }

  Rows needs(const Layout& layout, Rows out) const override {
    const Axis& rows = layout.label_rows;
    return {rows.first[out.first], rows.first[out.last - 1] + rows.count};
  }

  void run(const Views& v) const override {
    const BufferPlace& from = v.place(inputs[0]);
    const Axis& rows = v.layout.label_rows;
    const Axis& columns = v.layout.label_columns;
    const int64_t height = v.layout.key.label_height;
    const Tensor& output = v.frame.output;
    LabelRow row{};
    row.step = from.channels;
    row.classes = static_cast<int>(from.channels);
    row.width = from.columns;
    row.columns = columns.first.data();
    row.column_weights = columns.weights.data();
    row.runs = columns.runs.data();
    row.taps = columns.taps.data();
    row.run_count = static_cast<int>(columns.runs.size()) - 1;
    row.uniform = reinterpret_cast<uint8_t*>(v.scratch);
    row.pixels = v.layout.key.label_width;
    for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
      const int taps = rows.weights[2 * height + y] != 0 ? 3 : 2;
      row.same_rows = y > v.task.rows[0] && rows.first[y] == rows.first[y - 1] && taps == row.row_count;
      row.row_count = taps;
      for (int r = 0; r < taps; r++) {
        const int64_t source = std::min<int64_t>(rows.first[y] + r, from.rows - 1);
        row.rows[r] = v.logits(source);
        row.best[r] = v.best(source);
        row.weights[r] = rows.weights[r * height + y];
      }
      row.out = static_cast<uint8_t*>(output.data) + y * output.stride[1];
      v.kernels.labels[DType::f32](row);
    }
  }
};

}  // namespace

std::unique_ptr<Op> make_upsample() { return std::make_unique<Upsample>(); }

}  // namespace stdc
