// One image's run, and what a task of it sees: its op's layout, pixels and vectors of buffers.
#pragma once

#include <atomic>
#include <cstring>

#include "dtypes.h"
#include "engine.h"
#include "layout.h"
#include "op.h"

namespace stdc {

struct Frame {
  const Layout& layout;
  char* arena;
  char* scratch;         // layout.scratch bytes a thread
  const Tensor* inputs;  // of this image: shape[0] is 1
  Tensor output;
  std::atomic<int>* counters;
  std::atomic<int> next{0};
  std::atomic<int64_t>* nanoseconds;  // by op, or null
};

// Takes tasks until none is left.
void work(Frame& frame, int thread);

class Views {
 public:
  Views(const Frame& f, const Task& t, char* s)
      : frame(f), task(t), layout(f.layout), own(f.layout.ops[t.op]), program(f.layout.program),
        kernels(f.layout.kernels), scratch(s), dtype(program.dtype), size(traits(dtype).bytes) {}

  const Frame& frame;
  const Task& task;
  const Layout& layout;
  const OpLayout& own;
  const Program& program;
  const KernelSet& kernels;
  char* const scratch;
  const DType dtype;   // of maps but for levels
  const size_t size;   // bytes of an element of it

  const BufferPlace& place(const View& v) const { return layout.place(v); }
  Store store(const View& v) const { return program.buffer(v).store; }

  // Pixel (y, x) of a map's view; -1 and the size are the border.
  char* at(const View& v, int64_t y, int64_t x) const {
    const BufferPlace& p = place(v);
    return frame.arena + p.offset + ((y + 1) * p.pitch + (x + 1) * p.channels + v.offset) * p.item;
  }
  float* vector(const View& v) const { return reinterpret_cast<float*>(frame.arena + place(v).offset) + v.offset; }

  // Logits lie densely, in the arena or at the caller's.
  float* logits(int64_t y) const {
    const BufferPlace& p = place(program.output);
    char* base = layout.key.label_height ? frame.arena + p.offset : static_cast<char*>(frame.output.data);
    return reinterpret_cast<float*>(base) + y * p.pitch;
  }
  // The best class of each pixel of a row of them, where labels are wanted.
  uint8_t* best(int64_t y) const {
    return reinterpret_cast<uint8_t*>(frame.arena + layout.best) + y * place(program.output).columns;
  }
  // The row sums of an op whose output is averaged.
  float* sums(size_t op, int64_t y) const {
    return reinterpret_cast<float*>(frame.arena + layout.ops[op].sums) + y * program.ops[op]->output.channels;
  }

  // What tasks have prepared for this op's others.
  char* prepared() const { return frame.arena + own.prepared; }

  // The same, and the first channel of one that an op's block starts with.
  char* at(const View& v, int64_t y, int64_t x, int channel) const { return at(v, y, x) + channel * place(v).item; }
  // Zeros around the rows that were just written, for some channels of a view.
  void border(const View& v, int first, int count) const {
    const BufferPlace& p = place(v);
    const size_t bytes = count * p.item;
    const View part{v.buffer, v.offset + first, count};
    each_of_border(p, [&](int64_t y, int64_t x) { std::memset(at(part, y, x), p.zero, bytes); });
  }
  // Calls f(y, x) for the pixels around the rows of a map that this task writes.
  template <class F>
  void each_of_border(const BufferPlace& p, F f) const {
    for (int64_t y = task.rows[0]; y < task.rows[1]; y++) {
      f(y, -1);
      f(y, p.columns);
    }
    if (task.rows[0] == 0)
      for (int64_t x = -1; x <= p.columns; x++) f(-1, x);
    if (task.rows[1] == p.rows)
      for (int64_t x = -1; x <= p.columns; x++) f(p.rows, x);
  }
};

}  // namespace stdc
