// Between the caller's tensors and maps: raw frames, images or maps that come in, and the map that goes out.
#include <algorithm>

#include "../checker.h"
#include "../views.h"

namespace stdc {
namespace {

// The caller's tensor of an input buffer.
const Tensor& given(const Views& v, const View& view) {
  const auto& inputs = v.program.inputs;
  return v.frame.inputs[std::find(inputs.begin(), inputs.end(), view.buffer) - inputs.begin()];
}

char* row_of(const Tensor& t, int64_t y) {
  return static_cast<char*>(t.data) + y * t.stride[1] * traits(t.dtype).bytes;
}

// Raw RGB to four channels, less whole numbers, resized on the way. Around the map lies the pixel that normalisation
// maps to zero.
class FrameOp : public Op {
 public:
  void parse(Line& l) override {
    for (float& x : near_) x = l.real();
    for (int i = 0; i < 3; i++) border_[i] = l.real();
  }

  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.kernel(*this, c.kernels.frame);
    c.kernel(*this, c.kernels.copy[DType::f32]);
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.need(c.input(in), *this, "reads no input");
    c.need(c.store(in) == Store::frame && in.channels == 3 && c.store(output) == Store::act && output.channels == 4 &&
               c.whole(output) && c.stride(in) == 1 && c.stride(output) == 1,
           *this, "not RGB to four channels");
  }

  void lay_out(const Layout& layout, OpLayout& l) const override {
    l.scratch = (3 * layout.key.frame_width + 4) * sizeof(float);
  }

  void run(const Views& v) const override {
    const Tensor& in = given(v, inputs[0]);
    const BufferPlace& p = v.place(output);
    const bool resized = !v.layout.down_columns.first.empty();
    FrameRow row{};
    row.pixels = p.columns;
    row.source = in.shape[2];
    row.scratch = reinterpret_cast<float*>(v.scratch);
    std::copy(near_, near_ + 3, row.near);
    const auto frame_row = [&](int64_t y) { return reinterpret_cast<const uint8_t*>(row_of(in, y)); };
    for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
      if (resized) {
        const Axis& rows = v.layout.down_rows;
        const int64_t top = rows.first[y];
        row.top = frame_row(top);
        row.bottom = frame_row(std::min(top + 1, in.shape[1] - 1));
        row.weight = rows.weights[p.rows + y];
        row.columns = v.layout.down_columns.first.data();
        row.weights = v.layout.down_columns.weights.data() + p.columns;
      } else {
        row.top = frame_row(y);
      }
      row.out = v.at(output, y, 0);
      v.kernels.frame[v.dtype](row);
    }
    const auto copy = v.kernels.copy[DType::f32][v.dtype];
    v.each_of_border(p, [&](int64_t y, int64_t x) { copy({border_, 4, 1, v.at(output, y, x), 4, 1, 1, 4, 0}); });
  }

 private:
  float near_[3] = {0, 0, 0};
  float border_[4] = {0, 0, 0, 0};
};

class Import : public Op {
 public:
  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.kernel(*this, c.kernels.copy[DType::f32]);
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.need(c.input(in), *this, "reads no input");
    c.need(c.store(in) == Store::image && c.store(output) == Store::act && in.channels <= output.channels &&
               c.stride(in) == c.stride(output) && in.offset == 0,
           *this, "no map");
  }

  void run(const Views& v) const override {
    const Tensor& in = given(v, inputs[0]);
    const auto copy = v.kernels.copy[in.dtype][v.dtype];
    CopyRow row{};
    row.in_pixel = in.stride[2], row.in_channel = in.stride[3];
    row.out_pixel = v.place(output).channels, row.out_channel = 1;
    row.pixels = v.place(output).columns;
    row.channels = inputs[0].channels;
    row.spare = output.channels - row.channels;
    for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
      row.in = row_of(in, y);
      row.out = v.at(output, y, 0);
      copy(row);
    }
    v.border(output, 0, output.channels);
  }
};

class Export : public Op {
 public:
  void check(const Checker& c) const override {
    const View& in = inputs[0];
    c.need(c.kernels.copy[c.program.dtype][DType::f32], *this, "no copy to float32");
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.only(*this, "second output");
    c.need(output.buffer == c.program.output.buffer, *this, "second output");
    c.need(c.store(in) == Store::act && c.store(output) == Store::image && in.channels == output.channels &&
               c.stride(in) == c.stride(output),
           *this, "no map");
  }

  void run(const Views& v) const override {
    const Tensor& out = v.frame.output;
    const auto copy = v.kernels.copy[v.dtype][out.dtype];
    CopyRow row{};
    row.in_pixel = v.place(inputs[0]).channels, row.in_channel = 1;
    row.out_pixel = out.stride[2], row.out_channel = out.stride[3];
    row.pixels = v.place(inputs[0]).columns;
    row.channels = output.channels;
    for (int64_t y = v.task.rows[0]; y < v.task.rows[1]; y++) {
      row.in = v.at(inputs[0], y, 0);
      row.out = row_of(out, y);
      copy(row);
    }
  }
};

}  // namespace

std::unique_ptr<Op> make_frame() { return std::make_unique<FrameOp>(); }
std::unique_ptr<Op> make_import() { return std::make_unique<Import>(); }
std::unique_ptr<Op> make_export() { return std::make_unique<Export>(); }

}  // namespace stdc
