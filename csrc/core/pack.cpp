// Weights from the plan's layout to the kernels'.
#include <cstring>
#include <new>

#include "state.h"

namespace stdc {

Bytes::Bytes(size_t size) : size_(size) {
  if (size) data_ = static_cast<char*>(::operator new(size, std::align_val_t(64)));
}
Bytes::~Bytes() {
  if (data_) ::operator delete(data_, std::align_val_t(64));
}
Bytes::Bytes(Bytes&& o) noexcept : data_(o.data_), size_(o.size_) { o.data_ = nullptr, o.size_ = 0; }
Bytes& Bytes::operator=(Bytes&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

namespace {

Bytes zeros(size_t size) {
  Bytes b(size);
  std::memset(b.data(), 0, size);
  return b;
}

Bytes floats(const Weight* w, int64_t count) {
  Bytes b = zeros(count * sizeof(float));
  if (w) std::memcpy(b.data(), w->data, w->count * sizeof(float));
  return b;
}

// [out][in][kh][kw] of `sets` kernels to [set][block][view, tap, channel][block], pairs of channels together in bf16.
// A view's channels are padded to `padded` where the map has more (the stem's fourth).
template <class T>
void pack_conv(const T* from, T* to, int sets, int outputs, const std::vector<View>& inputs, int extra, int kernel,
               int block, int unit) {
  int total = 0;
  for (const View& v : inputs) total += v.channels;
  const int weights_in = total - extra;
  const int taps = kernel * kernel;
  const int64_t elements = static_cast<int64_t>(taps) * total;
  const int blocks = (outputs + block - 1) / block;
  for (int s = 0; s < sets; s++)
    for (int b = 0; b < blocks; b++) {
      T* panel = to + (static_cast<int64_t>(s) * blocks + b) * elements * block;
      int64_t k = 0;
      int first = 0;
      for (const View& v : inputs) {
        for (int t = 0; t < taps; t++)
          for (int c = 0; c < v.channels; c++, k++) {
            if (first + c >= weights_in) continue;
            for (int o = 0; o < block && b * block + o < outputs; o++) {
              const int64_t source =
                  ((static_cast<int64_t>(s) * outputs + b * block + o) * weights_in + first + c) * taps + t;
              panel[(k / unit * block + o) * unit + k % unit] = from[source];
            }
          }
        first += v.channels;
      }
    }
}

}  // namespace

std::vector<Packed> pack(const Program& program, const Kernels& kernels) {
  std::vector<Packed> all;
  const int block = kernels.block;
  for (const Op& op : program.ops) {
    Packed p;
    if (op.kind == Kind::conv || op.kind == Kind::down) {
      const Weight& w = program.weights[op.weight];
      const int kernel = op.kind == Kind::down ? 1 : op.kernel;
      const int sets = kernel == 2 ? 9 : 1;
      int total = 0;
      for (const View& v : op.inputs) total += v.channels;
      const int extra = total - static_cast<int>(w.shape[kernel == 2 ? 3 : 1]);
      p.blocks = (op.output.channels + block - 1) / block;
      p.block_bytes = static_cast<size_t>(kernel * kernel) * total * block * item(program.dtype);
      p.set_bytes = p.block_bytes * p.blocks;
      p.weights = zeros(p.set_bytes * sets);
      if (program.dtype == DType::f32)
        pack_conv(static_cast<const float*>(w.data), reinterpret_cast<float*>(p.weights.data()), sets,
                  op.output.channels, op.inputs, extra, kernel, block, 1);
      else
        pack_conv(static_cast<const uint16_t*>(w.data), reinterpret_cast<uint16_t*>(p.weights.data()), sets,
                  op.output.channels, op.inputs, extra, kernel, block, 2);
      p.bias = floats(op.bias < 0 ? nullptr : &program.weights[op.bias], static_cast<int64_t>(p.blocks) * block);
    }
    if (op.kind == Kind::down) {
      const int channels = op.output.channels;
      const auto* from = static_cast<const float*>(program.weights[op.depthwise_weight].data);
      p.depthwise = zeros(static_cast<size_t>(channels) * 9 * sizeof(float));
      auto* to = reinterpret_cast<float*>(p.depthwise.data());
      for (int first = 0; first < channels; first += block) {
        const int count = channels - first < block ? channels - first : block;
        for (int t = 0; t < 9; t++)
          for (int c = 0; c < count; c++) *to++ = from[(first + c) * 9 + t];
      }
      Bytes bias = floats(op.depthwise_bias < 0 ? nullptr : &program.weights[op.depthwise_bias], channels);
      p.biases.push_back(std::move(bias));
    }
    for (const auto& layer : op.layers) {
      const Weight& w = program.weights[layer.weight];
      p.layers.push_back(floats(&w, w.count));
      p.biases.push_back(layer.bias < 0 ? Bytes() : floats(&program.weights[layer.bias], w.shape[0]));
    }
    all.push_back(std::move(p));
  }
  return all;
}

}  // namespace stdc
