// What the model of kernels' times assumes of a GPU, each measured alone, printed as one JSON object. Built and run by
// bench/gpu_constants.py.
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#define CHECK(call)                                                                      \
  do {                                                                                   \
    const cudaError_t code = (call);                                                     \
    if (code != cudaSuccess) {                                                           \
      fprintf(stderr, "%s, line %d: %s\n", #call, __LINE__, cudaGetErrorString(code));   \
      exit(1);                                                                           \
    }                                                                                    \
  } while (0)

namespace {

constexpr int kNodes = 400, kRounds = 15;

__device__ void begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Nothing but its launch.
__global__ void empty_kernel() { begin(); }

// Also reads, from L2, what the one before it wrote.
__global__ void chain_kernel(const uint4* x, uint4* y) {
  begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  uint4 v = __ldcg(x + i);
  v.x += 1;
  y[i] = v;
}

// Reads `bytes` again and again past L1, each block from a place of its own.
__global__ void __launch_bounds__(512) read_kernel(const uint4* x, int vectors, int rounds, uint32_t* out) {
  uint32_t sum = 0;
  int i = static_cast<int>((static_cast<int64_t>(blockIdx.x) * vectors / gridDim.x + threadIdx.x) % vectors);
  for (int r = 0; r < rounds; ++r) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      v[k] = __ldcg(x + i);
      i += 512;
      if (i >= vectors) i -= vectors;
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 12345) *out = sum;
}

// Products of registers alone.
__global__ void mma_kernel(int rounds, uint32_t* out) {
  float c[8][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = 0x3c003800u + threadIdx.x * (i + 1);
  for (int i = 0; i < 2; ++i) b[i] = 0x38003400u + threadIdx.x * (i + 3);
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int k = 0; k < 8; ++k)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[k][0]), "+f"(c[k][1]), "+f"(c[k][2]), "+f"(c[k][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  float sum = 0;
  for (int k = 0; k < 8; ++k) sum += c[k][0] + c[k][1] + c[k][2] + c[k][3];
  if (sum == 12345) *out = 1;
}

// ldmatrix, without conflicts.
__global__ void shared_kernel(int rounds, uint32_t* out) {
  __shared__ __align__(128) uint4 tile[1024];
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = {threadIdx.x, 1, 2, 3};
  __syncthreads();
  uint32_t sum = 0, at = static_cast<uint32_t>(__cvta_generic_to_shared(tile)) + threadIdx.x % 32 * 16;
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      uint32_t v[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                   : "r"(at + k * 512));
      sum += v[0] ^ v[1] ^ v[2] ^ v[3];
    }
  }
  if (sum == 12345) *out = sum;
}

template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, bool dependent, void (*kernel)(Parameters...), int blocks, int threads,
            Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Median seconds of what `work` enqueues, in a graph.
template <class Work>
double seconds(const Work& work) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&ready, graph, 0));
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < kRounds + 3; ++i) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(ready, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 3) times.push_back(ms);
  }
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(stop));
  CHECK(cudaGraphExecDestroy(ready));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / 1e3;
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  const int processors = properties.multiProcessorCount;
  const bool dependent = properties.major >= 9;
  uint4 *x, *y;
  uint32_t* out;
  const int bytes = 16 << 20;  // less than any L2 of sm_80 and later but the smallest
  CHECK(cudaMalloc(&x, bytes));
  CHECK(cudaMalloc(&y, bytes));
  CHECK(cudaMalloc(&out, 4));
  CHECK(cudaMemset(x, 1, bytes));
  CHECK(cudaMemset(y, 2, bytes));

  // An idle GPU has low clocks.
  for (int i = 0; i < 40; ++i) mma_kernel<<<processors, 256>>>(20000, out);
  CHECK(cudaDeviceSynchronize());

  printf("{");
  for (int d = 0; d < (dependent ? 2 : 1); ++d) {
    const double alone = seconds([&](cudaStream_t s) {
      for (int i = 0; i < kNodes; ++i) launch(s, d, empty_kernel, processors, 256);
    });
    const double chain = seconds([&](cudaStream_t s) {
      for (int i = 0; i < kNodes; ++i) launch(s, d, chain_kernel, processors, 256, i % 2 ? y : x, i % 2 ? x : y);
    });
    printf("\"%snode\": %.4g, \"%schain\": %.4g, ", d ? "dependent_" : "", alone / kNodes, d ? "dependent_" : "",
           chain / kNodes);
  }
  // NOTE: one block of 512 threads a processor has 64 KB on their way.
  const int rounds = 400;
  const auto read = [&](int blocks) {
    return blocks * 512.0 * 16 * 8 * rounds /
           seconds([&](cudaStream_t s) { launch(s, false, read_kernel, blocks, 512, x, bytes / 16, rounds, out); });
  };
  printf("\"cache\": %.4g, \"port\": %.4g, ", read(2 * processors), read(1));
  for (int warps = 4; warps <= 16; warps *= 2) {
    const double time = seconds([&](cudaStream_t s) { launch(s, false, mma_kernel, processors, 32 * warps, 4000, out); });
    printf("\"mma_%d_warps\": %.4g, ", warps, 4096.0 * 8 * 4000 * warps * processors / time);
  }
  const double time = seconds([&](cudaStream_t s) { launch(s, false, shared_kernel, processors, 256, 2000, out); });
  printf("\"shared\": %.4g}\n", 512.0 * 16 * 2000 * 8 / time);
  CHECK(cudaDeviceSynchronize());
  return 0;
}
