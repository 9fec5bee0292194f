// Arguments of the row kernels, one struct an op, and the list of all row kernels.
//
// No STL here: this header is part of the objects that are compiled once an instruction set, where an inline
// function would be a weak symbol that the linker may take for all sets. Strides are in elements.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace stdc {

enum class DType : int { f32 = 0, bf16 = 1, u8 = 2, s8 = 3 };
constexpr int kDTypes = 4;

// Maps of u8 hold levels: whole numbers that are worth a step each, one for each channel. Where levels may be negative,
// 128 is added to them as they are stored.
struct Levels {
  const float* inverse;  // [channels] of the steps
  int zero;              // 0 or 128
};

// A run of consecutive elements that each output pixel reads: a tap, or several that lie side by side.
struct Step {
  ptrdiff_t offset;  // from the row's first input element, for the first output pixel
  ptrdiff_t step;    // from one output pixel's run to the next one's
  int64_t length;    // elements; even in bf16
};

// One row of a convolution, for one block of output channels: out = act(bias + sum over steps of in * weights). The sum
// of levels and whole weights is a whole number; it starts at `start` and is multiplied by `multipliers`.
struct ConvRow {
  const void* in;       // of the first output pixel
  const Step* steps;
  int step_count;
  const void* weights;  // [elements of all steps][block], in bf16 [elements / 2][block][2], in 8 bits by four
  const float* bias;    // [block]
  const float* multipliers;  // [block], of levels only, like
  const int32_t* start;      // [block]
  void* out;
  ptrdiff_t out_step;
  int64_t pixels;
  int channels;         // that are stored, at most the block
  bool relu;
  DType to;             // f32, u8, or the dtype of maps
  Levels levels;        // that are stored, where that is u8
  bool ahead;           // fetch the next pixels: they may not be in the first-level cache
  float* sums;          // [channels], the sum over the row is added to it, or null
};

// One row of a depthwise 3x3 stride 2 and of an average pool 3x3 stride 2 of the same map.
struct DownRow {
  const void* in[3];      // rows 2y-1, 2y, 2y+1 of the map, from column -1 on
  ptrdiff_t in_step;      // from pixel to pixel
  const float* weights;   // [9][channels]
  const float* bias;      // [channels]
  void* out;
  ptrdiff_t out_step;
  void* pooled;           // or null
  ptrdiff_t pooled_step;
  const Levels* levels;         // of out, or null where that is of the map's dtype
  const Levels* pooled_levels;  // likewise
  int64_t pixels;
  int64_t width;          // of the map, for the pool's divisor
  int rows_inside;        // of the three rows
  int channels;
  bool count_include_pad;
};

// out = in * scale + add, a row; null for what is absent, and for levels where out has the dtype of in.
struct PrologueRow {
  const void* in;
  ptrdiff_t in_step;
  const float* scale;      // [channels]
  const float* add;        // [channels]
  const void* add_map;     // like in
  ptrdiff_t add_step;
  const Levels* levels;
  void* out;
  ptrdiff_t out_step;
  int64_t pixels;
  int channels;
};

// A dense layer: out = act(weights x + bias).
struct GateLayer {
  const float* weights;  // [outputs][inputs]
  const float* bias;     // [outputs] or null
  const float* in;
  float* out;
  int inputs, outputs;
  int act;  // Act
};

enum Act : int { kNone = 0, kRelu = 1, kSigmoid = 2, kSigmoidPlus1 = 3 };

// One row of a raw frame to four channels (the fourth is zero), with or without resizing.
struct FrameRow {
  const uint8_t* top;     // RGB row of the frame
  const uint8_t* bottom;  // the next one; null without resizing
  float weight;           // of bottom
  const int32_t* columns; // [pixels] left neighbour; null without resizing
  const float* weights;   // [pixels] of the right neighbour
  int64_t source;         // pixels of a row of the frame
  float near[3];          // subtracted
  float* scratch;         // [3 * source + 4]
  void* out;
  int64_t pixels;
};

// One row of a video's Y'CbCr to RGB. Chroma is interpolated between two rows, then between columns.
struct YuvRow {
  const void* y;
  const void* u[2];  // the rows of chroma above and below; both the same where there are as many as of luma
  const void* v[2];
  float below;       // weight of the second
  int step;          // from one sample of chroma to the next: 1, or 2 where U and V alternate
  int ratio;         // columns of luma to one of chroma, 1 or 2
  bool centred;      // chroma lies between its two columns, else on the first
  bool wide;         // samples have 16 bits, else 8
  float luma;        // R = luma * Y + red_v * V + offset[0] and so on, of raw samples
  float red_v, green_u, green_v, blue_u;
  float offset[3];
  const float* table;  // [steps][steps][steps][4] of B, G, R: RGB from 0 to 255 in place of RGB, or null
  int steps;
  float* scratch;    // [yuv_scratch(pixels)]
  uint8_t* out;      // [pixels][3]
  int64_t pixels;
};
constexpr int kYuvRun = 64;  // pixels at a time
constexpr int64_t yuv_scratch(int64_t pixels) { return 3 * (pixels + 2 * kYuvRun); }

// The best class of each pixel of a row of logits, the lowest of a tie.
struct BestRow {
  const float* logits;
  ptrdiff_t step;  // from pixel to pixel
  int classes;
  int64_t pixels;
  uint8_t* out;
};

// One row of labels from logits that are interpolated between rows and columns.
struct LabelRow {
  const float* rows[3];    // logits [width][step] of the rows that take part
  float weights[3];        // of these
  int row_count;
  ptrdiff_t step;          // from pixel to pixel of the logits
  int classes;
  const uint8_t* best[3];  // [width] best class of these rows' pixels
  int64_t width;
  const int32_t* columns;  // [pixels] first of the columns that take part
  const float* column_weights;  // [3][pixels]
  const int32_t* runs;     // [run_count + 1] first pixels of runs with the same columns, and the end
  const uint8_t* taps;     // [run_count] how many columns take part, 2 or 3
  int run_count;
  bool same_rows;          // as in the call before
  uint8_t* uniform;        // [run_count], kept between calls
  uint8_t* out;
  int64_t pixels;
};

// Winograd's F(4x4, r x r): tiles of 4x4 outputs of r x r taps from n x n inputs, n = r + 3, by n * n products (Lavin
// and Gray, arXiv 1509.09308). r is 3 or 2. The points are 0, 5/8, -5/8, 3/2, -3/2 and infinity, and 1/2, -1/2, 5/4,
// -5/4 and infinity: of all small fractions, those that lose the fewest bits where products are of bf16.
constexpr int kTile = 4;
constexpr double kPoints[2] = {5.0 / 8, 3.0 / 2};
constexpr double kPoints2[2] = {1.0 / 2, 5.0 / 4};

// Neighbouring tiles of inputs, transformed: out[position][tile][channel], of the dtype of the maps.
struct WinogradIn {
  const void* in;             // the first tile's top left pixel
  ptrdiff_t row, pixel;
  void* out;
  ptrdiff_t position, tile;   // from one of the n * n to the next, from tile to tile
  int64_t tiles;
  int rows;                   // that exist, of the n; the others are zero
  int64_t columns;            // that exist from the first tile's first on
  int channels;               // a multiple of 16
};

// Tiles of outputs from the products in[position][tile][block].
struct WinogradOut {
  const float* in;
  ptrdiff_t position, tile;
  const float* bias;
  void* out;
  ptrdiff_t row, pixel;
  int64_t tiles;
  int rows;         // that are stored, of the four
  int64_t columns;  // that are stored from the first tile's first on
  int channels;
  bool relu;
  const Levels* levels;  // or null where out has the dtype of maps
  float* sums;      // [rows][sums_row], added to, or null
  ptrdiff_t sums_row;
};

// Strided rows to dense pixels of a map and back.
struct CopyRow {
  const void* in;
  ptrdiff_t in_pixel, in_channel;
  void* out;
  ptrdiff_t out_pixel, out_channel;
  int64_t pixels;
  int channels;
  int spare;  // zeros after each pixel's channels
};

}  // namespace stdc

// Every row kernel, named once: KERNEL(set, name, arguments, dtypes) stands for the functions name_dtype_set. The dtype
// is that of the maps; kernels of vectors and logits have STDC_F32, since those are float32 in every plan, and those of
// pictures STDC_U8. A set with
// tile registers has product kernels of its own and takes the others from another set.
#define STDC_F32(EACH, set, name, arguments) EACH(set, name, arguments, f32)
#define STDC_U8(EACH, set, name, arguments) EACH(set, name, arguments, u8)
#define STDC_FLOATS(EACH, set, name, arguments) EACH(set, name, arguments, f32) EACH(set, name, arguments, bf16)

#define STDC_PRODUCTS(EACH, set, name, arguments) STDC_FLOATS(EACH, set, name, arguments) STDC_U8(EACH, set, name, arguments)
#define STDC_PRODUCT_KERNELS(KERNEL, set) KERNEL(set, conv, ConvRow, STDC_PRODUCTS)

#define STDC_OTHER_KERNELS(KERNEL, set)                    \
  KERNEL(set, winograd3_in, WinogradIn, STDC_FLOATS)       \
  KERNEL(set, winograd3_out, WinogradOut, STDC_FLOATS)     \
  KERNEL(set, winograd2_in, WinogradIn, STDC_FLOATS)       \
  KERNEL(set, winograd2_out, WinogradOut, STDC_FLOATS)     \
  KERNEL(set, down, DownRow, STDC_FLOATS)                  \
  KERNEL(set, prologue, PrologueRow, STDC_FLOATS)          \
  KERNEL(set, gate, GateLayer, STDC_F32)                   \
  KERNEL(set, frame, FrameRow, STDC_FLOATS)                \
  KERNEL(set, yuv, YuvRow, STDC_U8)                        \
  KERNEL(set, best, BestRow, STDC_F32)                     \
  KERNEL(set, labels, LabelRow, STDC_F32)

// Between the caller's tensors and maps, named once as well: COPY(set, from, to) is copy_from_to_set, of a CopyRow.
#define STDC_COPIES(COPY, set) COPY(set, f32, f32) COPY(set, f32, bf16) COPY(set, bf16, f32) COPY(set, bf16, bf16)

// Names of one set's functions: STDC_FN(conv_f32) is conv_f32_avx2.
#define STDC_JOIN2(a, b) a##_##b
#define STDC_JOIN(a, b) STDC_JOIN2(a, b)
#define STDC_FN(name) STDC_JOIN(name, STDC_ISA)
