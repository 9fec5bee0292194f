// One mistake of each kind that compute-sanitizer is asked to find, in the namespace of the library's kernels, so that
// its filter takes them too. Built and called by bench/gpu_sanitize.py.
#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

namespace stdc {
namespace gpu {

// One thread writes beyond the allocation.
__global__ void planted_memory_kernel(int* out, int n) {
  if (static_cast<int>(threadIdx.x) <= n) out[threadIdx.x] = 1;
}

// Threads read what other warps write, with no barrier between.
__global__ void planted_race_kernel(int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Half of a warp leaves out a barrier.
__global__ void planted_barrier_kernel(int* out) {
  if (threadIdx.x < 48) __syncthreads();
  out[threadIdx.x] = 1;
}

}  // namespace gpu
}  // namespace stdc

extern "C" int planted(const char* tool) {
  using namespace stdc::gpu;
  int* out = nullptr;
  if (cudaMalloc(&out, 64 * sizeof(int)) != cudaSuccess) return 2;
  if (!strcmp(tool, "memcheck")) planted_memory_kernel<<<1, 128>>>(out, 64);
  if (!strcmp(tool, "racecheck")) planted_race_kernel<<<1, 64>>>(out);
  if (!strcmp(tool, "synccheck")) planted_barrier_kernel<<<1, 64>>>(out);
  const cudaError_t code = cudaDeviceSynchronize();
  printf("planted for %s: %s\n", tool, cudaGetErrorString(code));
  return code == cudaSuccess ? 0 : 1;
}
