// A saved plan as the engine holds it: buffers, ops and weights, all indices checked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "op.h"

namespace stdc {

enum class Store { frame, image, act, vector, logits, labels, levels };

struct Buffer {
  Store store;
  int channels;
  int stride;  // of the input's size; 0 for a vector
  std::string name;
  int zero;    // of levels, how zero is stored
};

struct Weight {
  DType dtype;
  std::vector<int64_t> shape;
  const void* data;
  int64_t count;
};

constexpr int kMostInputs = 8;

struct Program {
  int version;  // of the format that it was read from
  std::string name;
  DType dtype;
  std::vector<Buffer> buffers;
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<int> inputs;
  bool small = false;  // weights are to take little memory, rather than the fastest form
  View output;  // logits for networks, for blocks the image that export fills
  std::vector<Weight> weights;

  const Buffer& buffer(const View& v) const { return buffers[v.buffer]; }
  // What a map's pixels are of.
  DType dtype_of(const View& v) const { return buffer(v).store == Store::levels ? DType::u8 : dtype; }
  int64_t rows(int buffer, int64_t height) const { return size(buffers[buffer].stride, height); }
  int64_t columns(int buffer, int64_t width) const { return size(buffers[buffer].stride, width); }

 private:
  static int64_t size(int stride, int64_t n) { return stride ? (n + stride - 1) / stride : 1; }
};

// The weights stay where they are in the given bytes. std::runtime_error for what is no saved plan, or one that these
// row kernels do not run.
Program parse(const void* bytes, size_t size, const KernelSet& kernels);

}  // namespace stdc
