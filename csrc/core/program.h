// A saved plan as the engine holds it: buffers, ops and weights, all indices checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace stdc {

enum class Store { frame, image, act, vector, logits, labels };

struct Buffer {
  Store store;
  int channels;
  int stride;  // of the input's size; 0 for a vector
  std::string name;
};

struct View {
  int buffer = -1;
  int offset = 0;
  int channels = 0;
  explicit operator bool() const { return buffer >= 0; }
};

enum class Kind { frame, import, export_, conv, down, gate, prologue, upsample };

struct Op {
  Kind kind;
  std::string name;
  std::vector<View> inputs;
  View output;
  int act = kNone;
  // conv
  int kernel = 0, stride = 1;
  int weight = -1, bias = -1;
  View mean;  // conv: gets the average of the output
  // down
  View pooled;
  int depthwise_weight = -1, depthwise_bias = -1;
  bool count_include_pad = true;
  // prologue
  View scale, add;
  // gate: layers with weight, bias and activation each
  struct Layer {
    int weight, bias, act;
  };
  std::vector<Layer> layers;
  // frame
  float near[3] = {0, 0, 0};
  float border[3] = {0, 0, 0};
};

struct Weight {
  DType dtype;
  std::vector<int64_t> shape;
  const void* data;
  int64_t count;
};

constexpr int kMostInputs = 8;

struct Program {
  std::string name;
  DType dtype;
  std::vector<Buffer> buffers;
  std::vector<Op> ops;
  std::vector<int> inputs;
  View output;  // logits for networks, for blocks the image that export fills
  std::vector<Weight> weights;

  int64_t rows(int buffer, int64_t height) const { return size(buffers[buffer].stride, height); }
  int64_t columns(int buffer, int64_t width) const { return size(buffers[buffer].stride, width); }

 private:
  static int64_t size(int stride, int64_t n) { return stride ? (n + stride - 1) / stride : 1; }
};

// The weights stay where they are in the given bytes. std::runtime_error for what is no saved plan.
Program parse(const void* bytes, size_t size);

}  // namespace stdc
