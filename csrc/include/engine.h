// The CPU engine: runs a saved plan on frames, images or maps. Knows nothing of Python or torch.
//
//   stdc::Engine engine(bytes, size);                     // what stdc_fast's Executable.save() writes
//   stdc::Tensor frame{pixels, stdc::DType::u8, {1, h, w, 3}, {h * w * 3, w * 3, 3, 1}};
//   stdc::Tensor labels{out, stdc::DType::u8, {1, h, w, 1}, {h * w, w, 1, 1}};
//   engine.run(&frame, 1, labels, h, w, threads);
//
// Errors are std::invalid_argument (what the caller gave does not fit) and std::runtime_error (the plan or this
// machine), with the values in them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace stdc {

// A view of the caller's memory, [N, H, W, C] whatever its layout: strides are in elements.
struct Tensor {
  void* data;
  DType dtype;
  int64_t shape[4];
  int64_t stride[4];
};

// What one op did in the calls since profiling was turned on.
struct OpProfile {
  std::string name;
  std::string kind;
  double seconds;  // of all threads together
  int64_t calls;   // images
};

// How an op is computed; of all but convolutions the form is empty.
struct OpForm {
  std::string name;
  std::string kind;
  std::string form;  // "direct", "int8", "F(4x4, 3x3)" or "F(4x4, 2x2)"
};

struct Memory {
  size_t weights;  // bytes, packed
  size_t arena;    // bytes of the largest size seen so far, with what each thread needs
};

class Engine {
 public:
  // Parses a saved plan and packs its weights. isa: name of an instruction set, or empty for the best one here.
  // small: rather slower than with several times the weights.
  Engine(const void* plan, size_t bytes, const std::string& isa = "", bool small = false);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Runs a batch, image by image. The network sees height x width; a raw frame of another size is resized
  // (bilinear, align_corners). output is labels (u8, of any size), logits at 1/8 (f32), or a block's map.
  // exact: interpolate the logits first to height x width, then to the labels' size, as the official protocol does.
  // Calls from several threads are run one after the other. Results do not depend on the number of threads.
  void run(const Tensor* inputs, int count, const Tensor& output, int64_t height, int64_t width, int threads,
           bool exact = true);

  const char* isa() const;
  const std::string& name() const;
  Memory memory() const;
  std::vector<OpForm> forms() const;  // by op; they do not depend on the size

  // For tests: fill the arena with NaN before each image.
  void poison(bool on);
  // Start or stop to measure ops; the result of what was measured so far.
  void profile(bool on);
  std::vector<OpProfile> profiled() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A picture of a video as Y'CbCr. Samples are of 8 bits, or of 16 in the machine's order; U and V alternate where
// step is 2. Of chroma there are width / ratio_x columns and height / ratio_y rows, rounded up.
struct Yuv {
  const void* y;
  const void* u;
  const void* v;
  ptrdiff_t y_row, chroma_row;  // bytes from row to row
  int64_t height, width;
  int ratio_x, ratio_y;         // 1 or 2
  int step;                     // 1 or 2
  bool wide;
  bool centred;                 // chroma lies between its two columns, else on the first; always between its rows
  float luma, red_v, green_u, green_v, blue_u, offset[3];  // as in YuvRow
  const float* table;           // as in YuvRow
  int steps;
};
// RGB [height][width][3] of it, in this thread, rounded to the nearest.
void yuv_to_rgb(const Yuv& picture, uint8_t* rgb);

// Instruction sets that were built and that this processor has, the best first; the emulation of tiles, which is
// for tests, is the last.
std::vector<std::string> isas();
// The one that an engine takes: STDC_FAST_CPU_ISA or the best. std::runtime_error for one that is not there.
std::string best_isa(const std::string& wanted = "");

// Whether a convolution takes clearly less time with levels of 8 bits than with maps of this dtype. tiles: whether
// Winograd's may do it. shape: kernel, stride, input and output channels, rows and columns of the output at 512x1024.
bool levels_pay(const std::string& isa, const std::string& dtype, bool tiles, const std::array<int64_t, 6>& shape);

}  // namespace stdc
