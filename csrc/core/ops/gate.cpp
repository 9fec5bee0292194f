// Attention vectors: one or two dense layers of a vector, or of the averages whose row sums convolutions left.
#include <cstring>

#include "../views.h"
#include "products.h"

namespace stdc {
namespace {

class Gate : public Op {
 public:
  Gate() { takes_averages = true; }

  void parse(Line& l) override {
    for (int n = l.number(1, 2); n; n--) {
      Dense layer;
      layer.weight = l.weight();
      layer.bias = l.optional_weight();
      layer.act = l.number(kNone, kSigmoidPlus1);
      layers_.push_back(std::move(layer));
    }
  }

  void check(const Checker& c) const override {
    c.need(inputs.size() == 1, *this, "too many inputs");
    c.need(c.store(inputs[0]) == Store::vector && c.store(output) == Store::vector, *this, "no vectors");
    int64_t width = inputs[0].channels;
    for (const Dense& layer : layers_) {
      const Weight& w = c.program.weights[layer.weight];
      c.need(w.dtype == DType::f32 && w.shape.size() == 2 && w.shape[1] == width, *this, "weights of another shape");
      width = w.shape[0];
      c.floats(*this, layer.bias, width);
    }
    c.need(width == output.channels, *this, "output of another size");
  }

  size_t pack(const Program& program, const KernelSet&) override {
    size_t bytes = 0;
    for (Dense& layer : layers_) {
      const Weight& w = program.weights[layer.weight];
      layer.outputs = static_cast<int>(w.shape[0]);
      layer.packed = pack_floats(program, layer.weight, w.count);
      if (layer.bias >= 0) layer.packed_bias = pack_floats(program, layer.bias, layer.outputs);
      bytes += layer.packed.size() + layer.packed_bias.size();
    }
    return bytes;
  }

  void measure(const Layout& layout, OpLayout& l) const override {
    Op::measure(layout, l);
    l.rows = 1;
  }

  void lay_out(const Layout&, OpLayout& l) const override {
    l.scratch = inputs[0].channels * sizeof(float);
    for (const Dense& layer : layers_) l.scratch += layer.outputs * sizeof(float);
  }

  void run(const Views& v) const override {
    float* in = reinterpret_cast<float*>(v.scratch);
    read(v, in);
    int width = inputs[0].channels;
    for (const Dense& layer : layers_) {
      float* out = &layer == &layers_.back() ? v.vector(output) : in + width;
      v.kernels.gate[DType::f32](
          {layer.packed.floats(), layer.packed_bias.floats(), in, out, width, layer.outputs, layer.act});
      in = out;
      width = layer.outputs;
    }
  }

 private:
  struct Dense {
    int weight = -1, bias = -1, act = kNone;
    int outputs = 0;
    Bytes packed, packed_bias;
  };

  // The input vector, with the averages that are part of it.
  void read(const Views& v, float* to) const {
    const View& in = inputs[0];
    std::memcpy(to, v.vector(in), in.channels * sizeof(float));
    for (size_t o = 0; o < v.program.ops.size(); o++) {
      const Op& op = *v.program.ops[o];
      if (!op.mean || op.mean.buffer != in.buffer) continue;
      const BufferPlace& map = v.place(op.output);
      const float* sums = v.sums(o, 0);
      const double pixels = static_cast<double>(map.rows) * static_cast<double>(map.columns);
      for (int c = 0; c < op.mean.channels; c++) {
        const int place = op.mean.offset + c - in.offset;
        if (place < 0 || place >= in.channels) continue;
        double sum = 0;
        for (int64_t y = 0; y < map.rows; y++) sum += sums[y * op.output.channels + c];
        to[place] = static_cast<float>(sum / pixels);
      }
    }
  }

  std::vector<Dense> layers_;
};

}  // namespace

std::unique_ptr<Op> make_gate() { return std::make_unique<Gate>(); }

}  // namespace stdc
