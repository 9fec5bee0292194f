// Convolutions with mma.sync, and which of the two cores has a form. Compiled once a type, STDC_TYPE.
#include "conv_tile.cuh"
#include "forms.h"

namespace stdc {
namespace gpu {
namespace {

template <class T, class F>
STDC_KERNEL(F::kThreads, 1)
conv_kernel(const STDC_CONSTANT Params p) {
  convolve<T, F>(p);
}

}  // namespace

#define STDC_CASE(index, ...) \
  case index:                 \
    return launch_form<CompiledForm<__VA_ARGS__>>(conv_kernel<STDC_TYPE, CompiledForm<__VA_ARGS__>>, a, stream);

template <>
void conv_of<STDC_TYPE>(const ConvArgs& a, const Stream& stream) {
  switch (a.tiling.form) {
    STDC_CONV_FORMS(STDC_CASE)
    default:
      return wgmma_of<STDC_TYPE>(a, stream);
  }
}
#undef STDC_CASE

#define STDC_CASE(index, ...) \
  case index:                 \
    return bytes_of<CompiledForm<__VA_ARGS__>>(a);

template <>
int conv_bytes_of<STDC_TYPE>(const ConvArgs& a) {
  switch (a.tiling.form) {
    STDC_CONV_FORMS(STDC_CASE)
    default:
      return wgmma_bytes_of<STDC_TYPE>(a);
  }
}

}  // namespace gpu
}  // namespace stdc
