// What the parts of the engine share: packed weights, a plan laid out for one size, and one image's run.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "program.h"

namespace stdc {

// Memory with an alignment that no load of a vector crosses a cache line for.
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t size);
  ~Bytes();
  Bytes(Bytes&& other) noexcept;
  Bytes& operator=(Bytes&& other) noexcept;
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

inline size_t item(DType dtype) { return dtype == DType::f32 ? 4 : dtype == DType::bf16 ? 2 : 1; }

// Weights of one op as its kernel reads them.
struct Packed {
  Bytes weights;        // conv, down: [set][block of output channels][elements][block]
  size_t set_bytes = 0, block_bytes = 0;
  int blocks = 0;
  Bytes winograd;       // of a 3x3 that some size does by tiles
  Bytes bias;           // float [blocks * block]
  Bytes depthwise;      // float [block of channels][9][channels of the block]
  std::vector<Bytes> layers, biases;  // gate: float
};

std::vector<Packed> pack(const Program& program, const Kernels& kernels);

// A buffer's place. Maps have a border of one pixel on every side, zero except around raw frames.
struct Place {
  size_t offset = 0, bytes = 0;  // in the arena
  int64_t rows = 0, columns = 0, channels = 0;
  int64_t pitch = 0;             // elements from row to row
};

struct Task {
  uint16_t op;
  int32_t rows[2];    // of the output
  int32_t blocks[2];  // of output channels
  int32_t counter;    // that it raises when done
  int32_t waits[2];   // range of Shape::waits
};

// Counters [first, last) must have reached the goal.
struct Wait {
  int32_t first, last, goal;
};

// Of a convolution that reads two views.
constexpr size_t kMostSteps = 64;

// Interpolation from one axis to another: up to three neighbours of each output position.
struct Axis {
  int count = 2;
  std::vector<int32_t> first;
  std::vector<float> weights;  // [3][size]
  std::vector<int32_t> runs;   // where the neighbours that take part change, and the end
  std::vector<uint8_t> taps;   // by run: how many take part, 2 or 3
};
// Straight, or exactly as in two steps over `between` positions. align_corners.
Axis axis(int64_t source, int64_t between, int64_t size, bool exact);

struct Key {
  int64_t height, width;                // that the network sees
  int64_t frame_height, frame_width;    // of the input
  int64_t label_height, label_width;    // 0 for logits or a map
  int threads;
  bool exact;
  bool operator==(const Key& o) const {
    return height == o.height && width == o.width && frame_height == o.frame_height && frame_width == o.frame_width &&
           label_height == o.label_height && label_width == o.label_width && threads == o.threads && exact == o.exact;
  }
};

// A plan at one size: where everything lies and the order of the work.
struct Shape {
  Key key;
  std::vector<Place> places;            // by buffer
  std::vector<size_t> sums;             // by op: place of the row sums of a convolution with an average
  std::vector<std::vector<Step>> steps; // by op; of the sub-pixel form: four sets after each other
  std::vector<int> band_rows;           // by op
  std::vector<int> tiles;               // by op: Winograd's tiles at once, 0 where the convolution is direct
  size_t best = 0;                      // place of the best class of each pixel of the logits
  size_t arena = 0, scratch = 0;        // bytes; scratch is for each thread
  std::vector<Task> tasks;
  std::vector<Wait> waits;
  int counters = 0;
  Axis down_rows, down_columns;         // raw frame to the network's size
  Axis label_rows, label_columns;       // logits to labels
};

Shape lay_out(const Program& program, const Kernels& kernels, const Key& key);

// One image.
struct Frame {
  const Program& program;
  const Kernels& kernels;
  const std::vector<Packed>& packed;
  const Shape& shape;
  char* arena;
  char* scratch;        // shape.scratch bytes a thread
  const Tensor* inputs; // of this image: shape[0] is 1
  Tensor output;
  std::atomic<int>* counters;
  std::atomic<int> next{0};
  std::atomic<int64_t>* nanoseconds;  // by op, or null
};

// Whether a convolution is done by Winograd's tiles at this size.
bool by_tiles(const Program& program, const Kernels& kernels, const Op& op, int64_t rows, int64_t columns);
// Its weights for that, [block][36][channels][block] in float32, from the packed ones.
Bytes winograd_weights(const Packed& packed, const Program& program, const Kernels& kernels, const Op& op);
size_t winograd_scratch(const Kernels& kernels, const Op& op, int tiles);
void winograd(Frame& frame, const Task& task, char* scratch);

// Takes tasks until none is left.
void work(Frame& frame, int thread);

const Kernels& kernels(const std::string& isa);  // of a name that best_isa() returned

// Runs fn(argument, i) on up to `threads` threads, i = 0 on this one. Others may come late or not at all, so fn
// takes its work from a common list. If the pool is in use, fn runs on this thread alone.
void parallel(int threads, void (*fn)(void*, int), void* argument);

}  // namespace stdc
