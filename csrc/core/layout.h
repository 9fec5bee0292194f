// A plan laid out for one size: where everything lies in memory, and the order of the work.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel_set.h"
#include "program.h"

namespace stdc {

// Maps have a border of one pixel on every side, zero except around raw frames.
struct BufferPlace {
  size_t offset = 0, bytes = 0;  // in the arena
  int64_t rows = 0, columns = 0, channels = 0;
  int64_t pitch = 0;             // elements from row to row
  int64_t item = 0;              // bytes of an element
  int zero = 0;                  // what the border's bytes are
};

struct Task {
  uint16_t op;
  int32_t rows[2];    // of the output
  int32_t blocks[2];  // of output channels
  int32_t counter;    // that it raises when done
  bool prepares;      // inputs, for the op's other tasks
  int32_t waits[2];   // range of Layout::waits
};

// Counters [first, last) must have reached the goal.
struct Wait {
  int32_t first, last, goal;
};

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

// How the output of one op is cut into tasks: `bands` of rows times `parts` of blocks.
struct OpLayout {
  int64_t rows = 0;         // of the output
  int blocks = 1;           // of output channels
  double row_work = 0;      // multiply-adds of one row of one block, or what takes as long
  int64_t band = 1;         // rows of a task
  int64_t band_unit = 1;    // of which a band is a multiple
  int part = 1;             // blocks of a task
  int bands = 0, parts = 0;
  int counter = 0;          // of the first band
  size_t scratch = 0;       // bytes of one task
  size_t sums = 0;          // place of the row sums, where the output is averaged
  std::vector<Step> steps;  // of a convolution; of the sub-pixel form four sets after each other

  // Of Winograd's tiles.
  int tiles = 0;                  // at once
  size_t prepared = 0;            // place of the transformed input, where tasks of their own transform it
  size_t prepared_bytes = 0;      // 0 where there are no such tasks
  int64_t prepared_position = 0;  // elements from one position of the tiles to the next
  int prepared_bands = 0;         // such tasks, each for the rows of one band_unit
  int prepared_counter = 0;
};

struct Layout {
  Layout(const Program& p, const KernelSet& k, const Key& size) : program(p), kernels(k), key(size) {}

  const Program& program;
  const KernelSet& kernels;
  const Key key;
  std::vector<BufferPlace> places;  // by buffer
  std::vector<OpLayout> ops;
  size_t best = 0;                  // place of the best class of each pixel of the logits
  size_t arena = 0, scratch = 0;    // bytes; scratch is for each thread
  std::vector<Task> tasks;
  std::vector<Wait> waits;
  int counters = 0;
  Axis down_rows, down_columns;     // raw frame to the network's size
  Axis label_rows, label_columns;   // logits to labels

  const BufferPlace& place(const View& v) const { return places[v.buffer]; }
};

// The program and the kernels must outlive it.
Layout lay_out(const Program& program, const KernelSet& kernels, const Key& key);

}  // namespace stdc
