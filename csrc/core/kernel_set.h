// The row kernels of one instruction set, by name and dtype.
#pragma once

#include <string>

#include "kernels.h"

namespace stdc {

template <class T>
struct ByDType {
  T of[kDTypes] = {};
  T& operator[](DType dtype) { return of[static_cast<int>(dtype)]; }
  const T& operator[](DType dtype) const { return of[static_cast<int>(dtype)]; }
};
// Null where there is no such kernel; plans that need it are refused when they are read.
template <class Arguments>
using RowKernel = void (*)(const Arguments&);

// What the row kernels of a dtype take, for Winograd's tiles or against them.
struct Rates {
  double products;  // multiply-adds a cycle
  double in, out;   // cycles for each channel of a 6x6 tile that is transformed
};

struct KernelSet {
  const char* name;
  int block;  // output channels that a row of a convolution computes at once
  void (*finish)();  // gives back the tile registers; null where there are none
  ByDType<Rates> rates;
#define STDC_FIELD(set, name, arguments, dtypes) ByDType<RowKernel<arguments>> name;
  STDC_PRODUCT_KERNELS(STDC_FIELD, )
  STDC_OTHER_KERNELS(STDC_FIELD, )
#undef STDC_FIELD
  ByDType<ByDType<RowKernel<CopyRow>>> copy;  // from a dtype to another
};

const KernelSet& kernel_set(const std::string& isa);  // of a name that best_isa() returned

}  // namespace stdc
