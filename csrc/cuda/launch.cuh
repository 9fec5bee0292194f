// The one way to launch a kernel: every code is checked, and on the host the same call runs it on the CPU.
#pragma once

#include <stdexcept>
#include <string>

#include "gpu.h"
#include "primitives.cuh"
#if defined(__CUDACC__)
#include "codes.cuh"
#endif

namespace stdc {
namespace gpu {

// A kernel takes one struct of at most 4 KB, by value.
template <class Args>
using Kernel = void (*)(const Args);

inline std::string text(const Index& i) {
  return std::to_string(i.x) + "x" + std::to_string(i.y) + "x" + std::to_string(i.z);
}

#if defined(__CUDACC__)

// Refuses a device that is of another compute capability, as code for sm_90a runs on no other.
inline void require(int major, int minor, const char* what) {
  int device = 0, have_major = 0, have_minor = 0;
  check(cudaGetDevice(&device), what);
  check(cudaDeviceGetAttribute(&have_major, cudaDevAttrComputeCapabilityMajor, device), what);
  check(cudaDeviceGetAttribute(&have_minor, cudaDevAttrComputeCapabilityMinor, device), what);
  if (have_major != major || have_minor != minor)
    throw std::runtime_error(std::string(what) + " runs on sm_" + std::to_string(major * 10 + minor) +
                             " alone, the device is sm_" + std::to_string(have_major * 10 + have_minor));
}

// cluster: blocks along x that run at once, of which the grid has whole ones; up to 8 every device of sm_90 takes.
template <class Args>
void launch(Kernel<Args> kernel, const char* name, Index grid, int threads, int shared, const Args& args,
            const Stream& stream, int cluster = 1) {
  const std::string what = std::string(name) + ", grid " + text(grid) + ", " + std::to_string(threads) +
                           " threads, " + std::to_string(shared) + " bytes of shared memory";
  if (shared > 48 << 10) {
    // NOTE: the limit belongs to the function, not to the launch: always the same, so that threads may launch it with
    // different sizes, and a graph may hold several.
    int device = 0, most = 0;
    check(cudaGetDevice(&device), what);
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
    if (shared > most)
      throw std::runtime_error(what + ": the device has " + std::to_string(most) + "; other tiles need less");
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               most),
          what);
  }
  if (STDC_CARVEOUT >= 0) {
    // NOTE: where kernels that follow each other want different splits of the cache, a processor has to run empty
    // before it changes its own.
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributePreferredSharedMemoryCarveout,
                               STDC_CARVEOUT),
          what);
  }
  // NOTE: a captured node keeps both. What replay.cu changes later is its argument alone.
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (stream.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, args), what);
  if (stream.bytes) *stream.bytes = sizeof args;
}

#else

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline void require(int, int, const char*) {}

template <class Args>
void launch(Kernel<Args> kernel, const char* name, Index grid, int threads, int shared, const Args& args,
            const Stream& stream, int cluster = 1) {
  // NOTE: each thread has the struct by value, as on the device.
  emulator::run([&] { kernel(args); }, name, grid, threads, shared, stream.dependent, cluster);
}

#endif

}  // namespace gpu
}  // namespace stdc
