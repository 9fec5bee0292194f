// The forms in which the kernels with products are compiled, and the functions of each type's objects.
#pragma once

#include "gpu.h"

namespace stdc {
namespace gpu {

// X(index, warps along pixels, warps along channels, blocks of 16 pixels, blocks of 8 channels of each, slices)
#define STDC_CONV_FORMS(X) \
  X(0, 2, 4, 4, 4, 1)  /* 128 x 128 */ \
  X(1, 2, 2, 4, 4, 1)  /* 128 x 64 */ \
  X(2, 4, 1, 2, 4, 1)  /* 128 x 32 */ \
  X(3, 4, 1, 1, 2, 1)  /* 64 x 16 */ \
  X(4, 3, 4, 3, 4, 1)  /* 144 x 128 */ \
  X(5, 3, 2, 3, 4, 1)  /* 144 x 64 */ \
  X(6, 9, 1, 1, 4, 1)  /* 144 x 32 */ \
  X(7, 2, 1, 4, 4, 4)  /* 128 x 32, 4 slices */ \
  X(8, 1, 2, 4, 4, 4)  /* 64 x 64, 4 slices */ \
  X(9, 1, 1, 4, 4, 4)  /* 64 x 32, 4 slices */ \
  X(10, 1, 1, 4, 2, 4)  /* 64 x 16, 4 slices */

// Of wgmma, numbered after those: warp groups of four warps along pixels.
#define STDC_WGMMA_FORMS(X) \
  X(11, 4, 1, 1, 8, 1)   /* 64 x 64 */ \
  X(12, 4, 1, 1, 16, 1)  /* 64 x 128 */ \
  X(13, 8, 1, 1, 8, 1)   /* 128 x 64 */ \
  X(14, 8, 1, 1, 16, 1)  /* 128 x 128 */ \
  X(15, 8, 1, 1, 32, 1)  /* 128 x 256 */

#define STDC_STEM_FORMS(X) \
  X(0, 4, 1, 4, 4, 1)  /* 256 x 32 */ \
  X(1, 4, 1, 2, 2, 1)  /* 128 x 16 */

// Of the second convolution.
#define STDC_STEM_CONV_FORMS(X) \
  X(0, 4, 2, 2, 4, 1)  /* 128 x 64 */ \
  X(1, 4, 2, 1, 4, 1)  /* 64 x 64 */

// Pixels at the input's resolution: 9 x 17 of 160, 9 x 9 of 96.
#define STDC_DOWN_FORMS(X) \
  X(0, 2, 2, 5, 4, 1)  /* 160 x 64 */ \
  X(1, 2, 2, 3, 4, 1)  /* 96 x 64 */ \
  X(2, 2, 1, 3, 4, 2)  /* 96 x 32, 2 slices */ \
  X(3, 2, 4, 5, 4, 1)  /* 160 x 128 */

struct half_t;
struct bf16_t;

// Of levels, for maps of any type.
void conv_levels(const ConvArgs&, const Stream&);
template <class T>
void conv_of(const ConvArgs&, const Stream&);
template <class T>
int conv_bytes_of(const ConvArgs&);
// What is not in STDC_CONV_FORMS. Where there is no code for sm_90a, dispatch.cu refuses it.
template <class T>
void wgmma_of(const ConvArgs&, const Stream&);
template <class T>
int wgmma_bytes_of(const ConvArgs&);
template <class T>
void stem_of(const StemArgs&, const Stream&);
template <class T>
int stem_bytes_of(const StemArgs&);
template <class T>
void stem_conv_of(const StemConvArgs&, const Stream&);
template <class T>
int stem_conv_bytes_of(const StemConvArgs&);
template <class T>
void down_of(const DownArgs&, const Stream&);
template <class T>
int down_bytes_of(const DownArgs&);

}  // namespace gpu
}  // namespace stdc
