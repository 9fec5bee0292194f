// Pixels and vectors of one image's buffers, for what executes tasks.
#pragma once

#include <cstring>

#include "state.h"

namespace stdc {

class Views {
 public:
  Views(Frame& frame, const Task& task)
      : f_(frame), t_(task), op_(frame.program.ops[task.op]), packed_(frame.packed[task.op]),
        size_(item(frame.program.dtype)), bf16_(frame.program.dtype == DType::bf16) {}

 protected:
  const Place& place(const View& v) const { return f_.shape.places[v.buffer]; }
  Store store(const View& v) const { return f_.program.buffers[v.buffer].store; }

  // Pixel (y, x) of a map's view; -1 and the size are the border.
  char* at(const View& v, int64_t y, int64_t x) const {
    const Place& p = place(v);
    return f_.arena + p.offset + ((y + 1) * p.pitch + (x + 1) * p.channels + v.offset) * size_;
  }
  float* vector(const View& v) const { return reinterpret_cast<float*>(f_.arena + place(v).offset) + v.offset; }

  // The border around the rows that were just written, for some channels of a view.
  void border(const View& v, int first, int count) const {
    const Place& p = place(v);
    const size_t bytes = count * size_;
    const View part{v.buffer, v.offset + first, count};
    for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
      std::memset(at(part, y, -1), 0, bytes);
      std::memset(at(part, y, p.columns), 0, bytes);
    }
    if (t_.rows[0] == 0)
      for (int64_t x = -1; x <= p.columns; x++) std::memset(at(part, -1, x), 0, bytes);
    if (t_.rows[1] == p.rows)
      for (int64_t x = -1; x <= p.columns; x++) std::memset(at(part, p.rows, x), 0, bytes);
  }

  Frame& f_;
  const Task& t_;
  const Op& op_;
  const Packed& packed_;
  const size_t size_;
  const bool bf16_;
};

}  // namespace stdc
