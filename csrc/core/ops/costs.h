// What a convolution takes on one core, by the rates of an instruction set: which form of it is the fastest.
#pragma once

#include "../kernel_set.h"

namespace stdc {

// A convolution in the network of a 512x1024 image. A kernel of 2 is the sub-pixel form.
struct ConvShape {
  int kernel, stride;
  int64_t channels, outputs;
  int64_t rows, columns;  // of the output
};

// The image for which forms are chosen.
constexpr int64_t kTypicalHeight = 512, kTypicalWidth = 1024;

// Cycles of direct products of a dtype: u8 stands for levels.
double direct_cycles(const KernelSet& kernels, DType dtype, const ConvShape& shape);
// Cycles by Winograd's tiles, which only 3x3 of stride 1 and sub-pixel convolutions have.
double tiles_cycles(const KernelSet& kernels, DType dtype, const ConvShape& shape);
// Whether tiles, or levels with what makes them, take clearly less than the other forms of it in maps of a dtype.
bool tiles_pay(const KernelSet& kernels, DType dtype, const ConvShape& shape);
bool levels_pay(const KernelSet& kernels, DType dtype, const ConvShape& shape, bool tiles);

}  // namespace stdc
