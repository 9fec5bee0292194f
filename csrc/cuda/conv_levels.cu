// Convolutions of levels of 8 bits, with mma.sync. Their sums are whole numbers.
#include "conv_tile.cuh"
#include "forms.h"

namespace stdc {
namespace gpu {
namespace {

template <class F>
STDC_KERNEL(F::kThreads, 1)
conv_levels_kernel(const STDC_CONSTANT Params p) {
  convolve<levels_t, F>(p);
}

}  // namespace

#define STDC_CASE(index, ...) \
  case index:                 \
    return launch_form<CompiledForm<__VA_ARGS__>>(conv_levels_kernel<CompiledForm<__VA_ARGS__>>, a, stream);

void conv_levels(const ConvArgs& a, const Stream& stream) {
  switch (a.tiling.form) {
    STDC_CONV_FORMS(STDC_CASE)
    default:
      throw std::runtime_error("conv: no form " + std::to_string(a.tiling.form) + " for levels");
  }
}

}  // namespace gpu
}  // namespace stdc
