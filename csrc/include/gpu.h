// Arguments of the GPU's kernels, one struct an op, and their launchers. They know nothing of torch: pointers are to
// device memory of the current device, and nothing is allocated. Maps are NHWC in float16 or bfloat16; a view of a
// buffer is a pointer to its first channel, and the channels of the buffer are the pitch from pixel to pixel. Maps may
// also be levels, bytes that are each worth a step of its channel: int8 if they may be negative, else uint8. An op that
// reads these has `multipliers`, and counts channels and pitches of its inputs in pairs of levels; one that writes them
// has one over their steps.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <variant>
#include <vector>

namespace stdc {
namespace gpu {

enum Type : int { kHalf = 0, kBfloat = 1 };
constexpr int kTypes = 2;
enum Act : int { kNone = 0, kRelu = 1, kSigmoid = 2, kSigmoidPlus1 = 3 };
enum Add : int { kNothing = 0, kVector = 1, kMap = 2 };

struct Stream {
  void* handle;    // cudaStream_t
  bool dependent;  // kernels may start before the one before them is done, and wait inside; sm_90 and later
  size_t* bytes = nullptr;  // gets those of the argument of the last kernel, as of a node of a graph
};

// A compiled form: warps along pixels and along channels, the blocks of 16 pixels and of 8 channels that each has, and
// how many times there are these warps, which share the input channels and taps.
struct Form {
  int warps_m, warps_n, m, n, slices;
};

// How one kernel is cut: tile_h * tile_w is at most the form's pixels. Fields are sizes in pixels and channels.
struct Tiling {
  int form;    // index into conv_forms() and after them wgmma_forms(), stem_forms(), stem_conv_forms() or down_forms()
  int height, width;
  int chunk;   // input channels whose pixels are in shared memory at once; a multiple of 16
  int split;   // blocks that share a tile, each with some of the chunks
  int cluster = 1;  // blocks beside each other that share one stream of weights: 1, 2 or 4; more than 1 of wgmma alone
};

// The fields of each op's arguments, named once: FIELD(type, name), POINTER(what it points to, name), and TRIPLE(name)
// of three floats. The structs below and their bindings to Python are made of these lists.

// One or two dense layers on what `rows` rows of partial averages add up to.
#define STDC_GATE_FIELDS(FIELD, POINTER, TRIPLE)                             \
  FIELD(Type, type)             /* of the weights */                         \
  POINTER(const float, x)       /* [images, rows, channels of pitch] */      \
  POINTER(const void, weight)   /* [hidden or outputs, channels]; rows of */ \
                                /* both are rounded up to 8 with zeros */    \
  POINTER(const float, bias)                                                 \
  POINTER(const void, weight2)  /* [outputs, hidden] */                      \
  POINTER(const float, bias2)                                                \
  POINTER(float, y)             /* [images, outputs of out_pitch] */         \
  FIELD(int, images) FIELD(int, rows) FIELD(int, channels) FIELD(int, pitch) \
  FIELD(int, hidden)            /* 0: one layer, with act */                 \
  FIELD(int, outputs) FIELD(int, out_pitch) FIELD(int, act) FIELD(int, act2)

// y = act(conv(x * scale + add) + bias), of one or two inputs as if concatenated.
#define STDC_CONV_FIELDS(FIELD, POINTER, TRIPLE)                                                                    \
  FIELD(Type, type)                                                                                                 \
  FIELD(Tiling, tiling)                                                                                             \
  POINTER(const void, x)       /* [images, height, width, channels of pitch] */                                     \
  POINTER(const void, other)   /* second input, or null */                                                          \
  POINTER(const void, weight)  /* fragments, or core matrices of wgmma: stdc_fast/backends/cuda/fragments.py */     \
  POINTER(const float, bias)   /* [outputs] */                                                                      \
  POINTER(const float, multipliers) /* [outputs], for the sums of levels, or null; these have no prologue, gate or */ \
                               /* classifier */                                                                     \
  FIELD(int, negative) FIELD(int, other_negative) /* of levels that are read */                                     \
  POINTER(const float, inverse)  /* [outputs], one over steps of the levels that are written, or null */            \
  FIELD(int, out_negative)     /* of these */                                                                       \
  POINTER(void, y)             /* [images, out_height, out_width, outputs of out_pitch]; if `planar`, float32 */    \
                               /* planes [images, out_pitch, out_height, out_width] */                              \
  FIELD(int, prologue)         /* whether there is a scale, an addition or a gate */                                \
  POINTER(const float, scale)  /* [images, channels of scale_pitch], or null */                                     \
  FIELD(GateArgs, gate)        /* outputs > 0: gives the scale, for a kernel of 2 or 3; its y is not written */     \
  FIELD(GateArgs, beside)      /* outputs > 0: a gate of its own that further blocks compute */                     \
  POINTER(const void, add)     /* kVector: float32 [images, channels of add_pitch]; kMap: like x */                 \
  POINTER(float, sums)         /* [images, sums_rows, outputs of sums_pitch], what each tile adds to the image's */ \
                               /* average, or null */                                                               \
  POINTER(const void, classifier)  /* classes > 0: fragments of a 1x1 convolution of y to at most 32 channels; y */ \
                               /* is not written then, but `logits`, as planes; `workspace` is [tiles, blocks, */   \
                               /* pixels, 32] and `arrivals` [tiles] */                                             \
  POINTER(const float, classifier_bias)                                                                             \
  POINTER(float, logits)                                                                                            \
  FIELD(int, classes)                                                                                               \
  POINTER(float, workspace)    /* split > 1: [tiles, blocks, split, pixels, channels] of the form */                \
  POINTER(int, arrivals)       /* split > 1: [tiles, blocks], zero before and after */                              \
  FIELD(int, images) FIELD(int, height) FIELD(int, width) FIELD(int, out_height) FIELD(int, out_width)              \
  FIELD(int, kernel)           /* 2 is the sub-pixel form of a doubled map and 3x3 */                               \
  FIELD(int, stride)                                                                                                \
  FIELD(int, channels) FIELD(int, pitch) FIELD(int, other_channels) FIELD(int, other_pitch)                         \
  FIELD(int, outputs) FIELD(int, out_pitch)                                                                         \
  FIELD(int, act) FIELD(int, planar) FIELD(int, scale_pitch) FIELD(int, add_kind) FIELD(int, add_pitch)             \
  FIELD(int, sums_rows) FIELD(int, sums_pitch)

// First convolution, 3x3 stride 2: y = act(conv(image - offset) + bias), zero-padded after subtracting.
#define STDC_STEM_FIELDS(FIELD, POINTER, TRIPLE)                                                                   \
  FIELD(Type, type)                                                                                                \
  FIELD(Tiling, tiling)        /* of chunk and split only the least values are checked */                          \
  POINTER(const void, image)   /* uint8 or float32 [images, frame_height, frame_width, 3], seen as height x */     \
                               /* width (bilinear) */                                                              \
  FIELD(int, is_float)                                                                                             \
  POINTER(const void, weight)  /* fragments: of each row of taps four pixels of four colours, of which the last */ \
                               /* are zero */                                                                      \
  POINTER(const float, bias)                                                                                       \
  TRIPLE(offset)               /* subtracted from pixels */                                                        \
  TRIPLE(outside)              /* what stands for pixels outside of the image */                                   \
  POINTER(void, y)                                                                                                 \
  POINTER(const float, inverse)  /* [outputs], one over steps of the levels that are written, or null */           \
  FIELD(int, out_negative)                                                                                         \
  FIELD(int, images) FIELD(int, frame_height) FIELD(int, frame_width) FIELD(int, height) FIELD(int, width)         \
  FIELD(int, out_height) FIELD(int, out_width) FIELD(int, outputs) FIELD(int, out_pitch) FIELD(int, act)           \
  FIELD(float, scale_y) FIELD(float, scale_x)  /* (source - 1) / (seen - 1) */

// The first convolution and one of 3x3 stride 2 after it, y = act2(conv(act(conv(image - offset) + bias)) + bias2). The
// map between is no buffer.
#define STDC_STEM_CONV_FIELDS(FIELD, POINTER, TRIPLE)                                                       \
  FIELD(Type, type)                                                                                         \
  FIELD(Tiling, tiling)         /* of y; of chunk and split only the least values are checked */            \
  POINTER(const void, image)    /* this, is_float, weight, bias, offset, outside and scales as of a stem */ \
  FIELD(int, is_float)                                                                                      \
  POINTER(const void, weight)                                                                               \
  POINTER(const float, bias)                                                                                \
  TRIPLE(offset)                                                                                            \
  TRIPLE(outside)                                                                                           \
  POINTER(const void, weight2)  /* fragments, as of a convolution */                                        \
  POINTER(const float, bias2)                                                                               \
  POINTER(void, y)                                                                                          \
  POINTER(const float, inverse) /* as of a stem */                                                          \
  FIELD(int, out_negative)                                                                                  \
  FIELD(int, images) FIELD(int, frame_height) FIELD(int, frame_width) FIELD(int, height) FIELD(int, width)  \
  FIELD(int, channels)          /* of the map between, at most 32 */                                        \
  FIELD(int, out_height) FIELD(int, out_width) FIELD(int, outputs) FIELD(int, out_pitch)                    \
  FIELD(int, act) FIELD(int, act2) FIELD(float, scale_y) FIELD(float, scale_x)

// 1x1 convolution and ReLU, then depthwise 3x3 stride 2 to y and average pool 3x3 stride 2 to pooled.
#define STDC_DOWN_FIELDS(FIELD, POINTER, TRIPLE)                                                              \
  FIELD(Type, type)                                                                                           \
  FIELD(Tiling, tiling)                 /* height and width of the tile at the input's resolution: 2 n + 1 */ \
  POINTER(const void, x)                                                                                      \
  POINTER(const void, weight)                                                                                 \
  POINTER(const float, bias)            /* [outputs] */                                                       \
  POINTER(const void, depthwise)        /* [9, outputs rounded up to 8] */                                    \
  POINTER(const float, depthwise_bias)  /* [outputs rounded up to 8] */                                       \
  POINTER(const float, multipliers)     /* [outputs], for the sums of levels, or null */                      \
  FIELD(int, negative)                  /* of levels that are read */                                         \
  POINTER(void, y)                                                                                            \
  POINTER(const float, inverse)         /* [outputs], one over steps of the levels of y, or null */           \
  FIELD(int, out_negative)                                                                                    \
  POINTER(void, pooled)                 /* or null */                                                         \
  POINTER(const float, pooled_inverse)  /* alike of pooled */                                                 \
  FIELD(int, pooled_negative)                                                                                 \
  FIELD(int, images) FIELD(int, height) FIELD(int, width) FIELD(int, out_height) FIELD(int, out_width)        \
  FIELD(int, channels) FIELD(int, pitch) FIELD(int, outputs) FIELD(int, out_pitch) FIELD(int, pooled_pitch)   \
  FIELD(int, count_pad)                 /* the average divides by nine everywhere, else by the pixels inside */

// y = x * scale + add, where no convolution does it.
#define STDC_PROLOGUE_FIELDS(FIELD, POINTER, TRIPLE)                                               \
  FIELD(Type, type)                                                                                \
  POINTER(const void, x)                                                                           \
  POINTER(const float, scale)  /* or null */                                                       \
  POINTER(const void, add)                                                                         \
  POINTER(void, y)                                                                                 \
  POINTER(const float, inverse) /* [channels], one over steps of the levels of y, or null */       \
  FIELD(int, out_negative)                                                                         \
  FIELD(int, images) FIELD(int, area) FIELD(int, channels) FIELD(int, pitch) FIELD(int, out_pitch) \
  FIELD(int, scale_pitch) FIELD(int, add_kind) FIELD(int, add_pitch)

// Labels from logits: interpolation by tables, then the best class, the lowest of equals.
#define STDC_UPSAMPLE_FIELDS(FIELD, POINTER, TRIPLE)                                                             \
  POINTER(const float, logits)         /* [images, classes, height, width] */                                    \
  POINTER(const int, row_base)         /* [out_height], first of the rows that a row of labels reads */          \
  POINTER(const float, row_weight)     /* [out_height, taps] */                                                  \
  POINTER(const int, column_start)     /* [width + 1], first column of labels of each cell between columns of */ \
                                       /* the logits */                                                          \
  POINTER(const float, column_weight)  /* [out_width, taps] */                                                   \
  POINTER(uint8_t, labels)             /* [images, out_height, out_width] */                                     \
  FIELD(int, images) FIELD(int, classes) FIELD(int, height) FIELD(int, width)                                    \
  FIELD(int, out_height) FIELD(int, out_width) FIELD(int, taps)

// All structs, with their fields.
#define STDC_ARGS(ARGS)                     \
  ARGS(GateArgs, STDC_GATE_FIELDS)          \
  ARGS(ConvArgs, STDC_CONV_FIELDS)          \
  ARGS(StemArgs, STDC_STEM_FIELDS)          \
  ARGS(StemConvArgs, STDC_STEM_CONV_FIELDS) \
  ARGS(DownArgs, STDC_DOWN_FIELDS)          \
  ARGS(PrologueArgs, STDC_PROLOGUE_FIELDS)  \
  ARGS(UpsampleArgs, STDC_UPSAMPLE_FIELDS)

#define STDC_FIELD(type, name) type name;
#define STDC_POINTER(type, name) type* name;
#define STDC_TRIPLE(name) float name[3];
#define STDC_STRUCT(name, fields)                 \
  struct name {                                   \
    fields(STDC_FIELD, STDC_POINTER, STDC_TRIPLE) \
  };
STDC_ARGS(STDC_STRUCT)
#undef STDC_STRUCT
#undef STDC_TRIPLE
#undef STDC_POINTER
#undef STDC_FIELD

void conv(const ConvArgs&, const Stream&);
void stem(const StemArgs&, const Stream&);
void stem_conv(const StemConvArgs&, const Stream&);
void down(const DownArgs&, const Stream&);
void gate(const GateArgs&, const Stream&);
void prologue(const PrologueArgs&, const Stream&);
void upsample(const UpsampleArgs&, const Stream&);

// Any of these; and all of them in order, with a device (or -1: the current one) made current meanwhile.
using Step = std::variant<ConvArgs, StemArgs, StemConvArgs, DownArgs, GateArgs, PrologueArgs, UpsampleArgs>;
void run(const std::vector<Step>& steps, const Stream& stream, int device);

// As 1000 * major + 10 * minor: of CUDA that the driver has, 0 if there is none, and that this was built with.
int driver_version();
int runtime_version();

std::vector<Form> conv_forms();
std::vector<Form> wgmma_forms();  // of convolutions on sm_90; none without code for sm_90a
std::vector<Form> stem_forms();
std::vector<Form> stem_conv_forms();
std::vector<Form> down_forms();
// Bytes of shared memory that a launch needs.
int shared_bytes(const ConvArgs&);
int shared_bytes(const StemArgs&);
int shared_bytes(const StemConvArgs&);
int shared_bytes(const DownArgs&);

}  // namespace gpu
}  // namespace stdc
