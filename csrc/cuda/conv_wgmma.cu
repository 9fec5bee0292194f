// Convolutions with wgmma. Compiled once a type, STDC_TYPE, and for sm_90a alone.
#include "forms.h"
#include "wgmma_product.cuh"
#include "conv_tile.cuh"

namespace stdc {
namespace gpu {
namespace {

template <class T, class F>
// Forms of 64 channels with 128 registers a thread: two blocks, or four of 64 pixels, share a processor.
STDC_KERNEL(F::kThreads, F::kChannels == 64 ? 512 / F::kThreads : 1)
wgmma_kernel(const STDC_CONSTANT Params p) {
  convolve<T, F>(p);
  // As long as others of the cluster may arrive at this block's barriers, it has not ended. Blocks of a gate have none.
  if (p.s.cluster > 1 && block_id().x >= p.gate_columns) cluster_wait();
}

}  // namespace

#define STDC_CASE(index, ...)                                                                                      \
  case index:                                                                                                      \
    require(kWgmmaMajor, kWgmmaMinor, "conv: wgmma");                                                              \
    return launch_form<WarpGroupForm<__VA_ARGS__>>(wgmma_kernel<STDC_TYPE, WarpGroupForm<__VA_ARGS__>>, a, stream);

template <>
void wgmma_of<STDC_TYPE>(const ConvArgs& a, const Stream& stream) {
  switch (a.tiling.form) {
    STDC_WGMMA_FORMS(STDC_CASE)
    default:
      throw std::runtime_error("conv: no form " + std::to_string(a.tiling.form));
  }
}
#undef STDC_CASE

#define STDC_CASE(index, ...) \
  case index:                 \
    return bytes_of<WarpGroupForm<__VA_ARGS__>>(a);

template <>
int wgmma_bytes_of<STDC_TYPE>(const ConvArgs& a) {
  switch (a.tiling.form) {
    STDC_WGMMA_FORMS(STDC_CASE)
    default:
      return 0;
  }
}

}  // namespace gpu
}  // namespace stdc
