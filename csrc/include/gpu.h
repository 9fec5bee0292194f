// Arguments of the GPU's kernels, one struct an op, and their launchers. They know nothing of torch: pointers are to
// device memory of the current device, and nothing is allocated. Maps are NHWC in float16 or bfloat16; a view of a
// buffer is a pointer to its first channel, and the channels of the buffer are the pitch from pixel to pixel.
#pragma once

#include <stdint.h>

#include <variant>
#include <vector>

namespace stdc {
namespace gpu {

enum Type : int { kHalf = 0, kBfloat = 1 };
enum Act : int { kNone = 0, kRelu = 1, kSigmoid = 2, kSigmoidPlus1 = 3 };
enum Add : int { kNothing = 0, kVector = 1, kMap = 2 };

struct Stream {
  void* handle;    // cudaStream_t
  bool dependent;  // kernels may start before the one before them is done, and wait inside; sm_90 and later
};

// A compiled form: warps along pixels and along channels, and the blocks of 16 pixels and of 8 channels that each has.
struct Core {
  int warps_m, warps_n, m, n;
};

// How one kernel is cut: tile_h * tile_w is at most the core's pixels. Fields are sizes in pixels and channels.
struct Tiling {
  int core;    // index into conv_cores(), stem_cores() or down_cores()
  int height, width;
  int chunk;   // input channels whose pixels are in shared memory at once; a multiple of 16
  int split;   // blocks that share a tile, each with some of the chunks
};

// y = act(conv(x * scale + add) + bias), of one or two inputs as if concatenated.
struct ConvArgs {
  Type type;
  Tiling tiling;
  const void* x;          // [images, height, width, channels of pitch]
  const void* other;      // second input, or null
  const void* weight;     // fragments, see stdc_fast/backends/fragments.py
  const float* bias;      // [outputs]
  void* y;                // [images, out_height, out_width, outputs of out_pitch], or float32 planes
                          // [images, out_pitch, out_height, out_width] if `planar`
  const float* scale;     // [images, channels of scale_pitch], or null
  const void* add;        // kVector: float32 [images, channels of add_pitch]; kMap: like x
  float* sums;            // [images, sums_rows, outputs of sums_pitch], what each tile adds to the image's average, or
                          // null
  float* workspace;       // split > 1: [tiles, blocks, split, pixels, channels] of the core
  int* arrivals;          // split > 1: [tiles, blocks], zero before and after
  int images, height, width, out_height, out_width;
  int kernel, stride;     // kernel 2 is the sub-pixel form of a doubled map and 3x3
  int channels, pitch, other_channels, other_pitch, outputs, out_pitch;
  int act, planar, scale_pitch, add_kind, add_pitch, sums_rows, sums_pitch;
};

// First convolution, 3x3 stride 2: y = act(conv(image - offset) + bias), zero-padded after subtracting.
struct StemArgs {
  Type type;
  Tiling tiling;      // of chunk and split only the least values are checked
  const void* image;  // uint8 or float32 [images, frame_height, frame_width, 3], seen as height x width (bilinear)
  int is_float;
  const void* weight;  // fragments: of each row of taps four pixels of four colours, of which the last are zero
  const float* bias;
  float offset[3];    // subtracted from pixels
  float outside[3];   // what stands for pixels outside of the image
  void* y;
  int images, frame_height, frame_width, height, width, out_height, out_width, outputs, out_pitch, act;
  float scale_y, scale_x;  // (source - 1) / (seen - 1)
};

// 1x1 convolution and ReLU, then depthwise 3x3 stride 2 to y and average pool 3x3 stride 2 to pooled.
struct DownArgs {
  Type type;
  Tiling tiling;                // height and width of the tile at the input's resolution: 2 n + 1
  const void* x;
  const void* weight;
  const float* bias;            // [outputs]
  const void* depthwise;        // [9, outputs rounded up to 8]
  const float* depthwise_bias;  // [outputs rounded up to 8]
  void* y;
  void* pooled;                 // or null
  int images, height, width, out_height, out_width, channels, pitch, outputs, out_pitch, pooled_pitch;
  int count_pad;                // the average divides by nine everywhere, else by the pixels inside of the image
};

// One or two dense layers on what `rows` rows of partial averages add up to.
struct GateArgs {
  Type type;  // of the weights
  const float* x;        // [images, rows, channels of pitch]
  const void* weight;    // [hidden or outputs, channels]
  const float* bias;
  const void* weight2;   // [outputs, hidden]
  const float* bias2;
  float* y;              // [images, outputs of out_pitch]
  int images, rows, channels, pitch, hidden, outputs, out_pitch, act, act2;  // hidden 0: one layer, with act
};

// y = x * scale + add, where no convolution reads the result.
struct PrologueArgs {
  Type type;
  const void* x;
  const float* scale;  // or null
  const void* add;
  void* y;
  int images, area, channels, pitch, out_pitch, scale_pitch, add_kind, add_pitch;
};

// Labels from logits: interpolation by tables, then the best class, the lowest of equals.
struct UpsampleArgs {
  const float* logits;         // [images, classes, height, width]
  const int* row_base;         // [out_height], first of the rows that a row of labels reads
  const float* row_weight;     // [out_height, taps]
  const int* column_start;     // [width + 1], first column of labels of each cell between columns of the logits
  const float* column_weight;  // [out_width, taps]
  uint8_t* labels;             // [images, out_height, out_width]
  int images, classes, height, width, out_height, out_width, taps;
};

void conv(const ConvArgs&, const Stream&);
void stem(const StemArgs&, const Stream&);
void down(const DownArgs&, const Stream&);
void gate(const GateArgs&, const Stream&);
void prologue(const PrologueArgs&, const Stream&);
void upsample(const UpsampleArgs&, const Stream&);

// Any of these; and all of them in order, with a device (or -1: the current one) made current meanwhile.
using Step = std::variant<ConvArgs, StemArgs, DownArgs, GateArgs, PrologueArgs, UpsampleArgs>;
void run(const std::vector<Step>& steps, const Stream& stream, int device);

// As 1000 * major + 10 * minor: of CUDA that the driver has, 0 if there is none, and that this was built with.
int driver_version();
int runtime_version();

std::vector<Core> conv_cores();
std::vector<Core> stem_cores();
std::vector<Core> down_cores();
// Bytes of shared memory that a launch needs.
int shared_bytes(const ConvArgs&);
int shared_bytes(const StemArgs&);
int shared_bytes(const DownArgs&);

}  // namespace gpu
}  // namespace stdc
