// Packs weights of products into panels and lays out the steps that multiply them.
#include "products.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../dtypes.h"

namespace stdc {
namespace {

int channels_of(const std::vector<View>& views) {
  int total = 0;
  for (const View& v : views) total += v.channels;
  return total;
}

// [out][in][kh][kw] of `sets` kernels to [set][block][view, tap, channel][block], `unit` channels together.
// Weights are zero for channels that only the map has (the stem's fourth).
template <class T>
void pack_panels(const T* from, T* to, int sets, int outputs, const std::vector<View>& inputs, int weights_in,
                 int kernel, int block, int unit) {
  const int taps = kernel * kernel;
  const int64_t elements = static_cast<int64_t>(taps) * channels_of(inputs);
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

PackedWeights pack_products(const Program& program, int block, const Op& op, int kernel, int weight, int bias,
                            int multipliers) {
  const Weight& w = program.weights[weight];
  const DType packed = multipliers >= 0 ? DType::s8 : program.dtype;
  const DTypeTraits& dtype = traits(packed);
  const int sets = kernel == 2 ? 9 : 1;
  const int weights_in = static_cast<int>(w.shape[kernel == 2 ? 3 : 1]);
  PackedWeights p;
  p.blocks = blocks_of(op, block);
  p.block_bytes = static_cast<size_t>(kernel * kernel) * channels_of(op.inputs) * block * dtype.bytes;
  p.set_bytes = p.block_bytes * p.blocks;
  p.weights = zeros(p.set_bytes * sets);
  Bytes rounded;
  if (w.dtype != packed) {
    rounded = Bytes(w.count * dtype.bytes);
    for (int64_t i = 0; i < w.count; i++) dtype.put(rounded.data(), i, traits(w.dtype).value(w.data, i));
  }
  const void* from = rounded.size() ? rounded.data() : w.data;
  const auto pack = [&](auto* to) {
    pack_panels(static_cast<const std::remove_pointer_t<decltype(to)>*>(from), to, sets, op.output.channels,
                op.inputs, weights_in, kernel, block, dtype.unit);
  };
  // Elements are moved, whatever they mean.
  switch (dtype.bytes) {
    case 1: pack(reinterpret_cast<uint8_t*>(p.weights.data())); break;
    case 2: pack(reinterpret_cast<uint16_t*>(p.weights.data())); break;
    case 4: pack(reinterpret_cast<uint32_t*>(p.weights.data())); break;
  }
  const int64_t outputs = static_cast<int64_t>(p.blocks) * block;
  p.bias = pack_floats(program, bias, outputs);
  if (multipliers < 0) return p;
  p.multipliers = pack_floats(program, multipliers, outputs);
  // Stored levels are `zero` too large, and so are sums by that many times the sum of all weights.
  p.start = zeros(sets * outputs * sizeof(int32_t));
  const int64_t each = w.count / sets / op.output.channels;
  for (int s = 0; s < sets; s++)
    for (int o = 0; o < op.output.channels; o++) {
      const auto* from = static_cast<const int8_t*>(w.data) + (static_cast<int64_t>(s) * op.output.channels + o) * each;
      int32_t sum = 0;
      for (int64_t i = 0; i < each; i++) sum += from[i];
      reinterpret_cast<int32_t*>(p.start.data())[s * outputs + o] = -program.buffer(op.inputs[0]).zero * sum;
    }
  return p;
}

PackedLevels pack_levels(const Program& program, const View& view, int inverse) {
  if (inverse < 0) return {};
  // Kernels load whole vectors.
  return {pack_floats(program, inverse, view.channels + 64), program.buffer(view).zero};
}

Bytes pack_floats(const Program& program, int weight, int64_t count) {
  Bytes b = zeros(count * sizeof(float));
  if (weight >= 0) std::memcpy(b.data(), program.weights[weight].data, program.weights[weight].count * sizeof(float));
  return b;
}

std::vector<Step> product_steps(const Layout& layout, const Op& op, int kernel, int stride) {
  std::vector<Step> steps;
  const BufferPlace& first = layout.place(op.inputs[0]);
  const int64_t size = first.item;
  for (int parity = 0; parity < (kernel == 2 ? 4 : 1); parity++)
    for (const View& v : op.inputs) {
      const BufferPlace& place = layout.place(v);
      // From pixel (0, 0) of the first view.
      const ptrdiff_t start = (static_cast<ptrdiff_t>(place.offset) - static_cast<ptrdiff_t>(first.offset)) / size +
                              (place.pitch + place.channels + v.offset) -
                              (first.pitch + first.channels + op.inputs[0].offset);
      const bool dense = v.channels == place.channels;  // neighbours' channels lie side by side
      for (int i = 0; i < kernel; i++)
        for (int j = 0; j < (dense ? 1 : kernel); j++) {
          const int dy = kernel == 2 ? i - 1 + parity / 2 : i - kernel / 2;
          const int dx = kernel == 2 ? j - 1 + parity % 2 : j - kernel / 2;
          const int64_t length = dense ? v.channels * kernel : v.channels;
          // In parts, between which the kernels may add up sums.
          for (int64_t done = 0; done < length; done += kLongest)
            steps.push_back({start + dy * place.pitch + dx * place.channels + done, place.channels * stride,
                             std::min(kLongest, length - done)});
        }
    }
  if (op.inputs.size() > 1 && steps.size() > kMostSteps)
    throw std::runtime_error("op " + op.name + ": too many channels of two views");
  return steps;
}

int blocks_of(const Op& op, int block) { return (op.output.channels + block - 1) / block; }

void cut_blocks(double work, OpLayout& l) {
  if (l.band >= 4 || l.blocks == 1) return;
  l.band = std::min<int64_t>(4, l.rows);
  l.part = std::max(1, static_cast<int>(work / (l.row_work * l.band)));
}

}  // namespace stdc
