// Matrix-vector products of averages: attention, feature fusion, global context.
#include "core.cuh"
#include "launch.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kOutputs = 16;  // of a block: one a warp

struct Params {
  GateArgs a;
  int groups;  // of threads that add up rows side by side
};

STDC_DEVICE float activate(float x, int act) {
  if (act == kRelu) return x < 0 ? 0 : x;
  if (act == kNone) return x;
  return (act == kSigmoidPlus1 ? 1 : 0) + 1 / (1 + exponential(-x));
}

// y[first..last) = act(weight x + bias), each by one warp, in a fixed order; x and y in shared memory, or y is `out`.
template <class T>
STDC_DEVICE void layer(uint32_t x, const T* weight, const float* bias, uint32_t y, float* out, int first, int last,
                       int channels, int act) {
  STDC_ROLLED
  for (int n = first + warp_id(); n < last; n += kWarps) {
    float sum = 0;
    const T* w = weight + static_cast<int64_t>(n) * channels;
    for (int c = lane_id(); c < channels; c += 32)
      sum += to_float(T{load_weight(&w[c].bits)}) * shared_load<float>(x + c * 4);
    STDC_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane_id() > 0) continue;
    sum = activate(sum + load_weight(bias + n), act);
    if (out != nullptr)
      store(out + n, sum);
    else
      shared_store(y + n * 4, sum);
  }
}

template <class T>
STDC_KERNEL(kThreads, 1)
gate_kernel(const STDC_CONSTANT Params p) {
  launch_dependents();
  const GateArgs& a = p.a;
  const int64_t image = block_id().y;
  const uint32_t input = a.channels * 4, hidden = input + p.groups * a.channels * 4;  // after the sums
  grid_wait();

  // Averages: groups of threads have every `groups`-th row, then these are added up.
  const float* x = a.x + image * a.rows * a.pitch;
  for (int i = thread_id(); i < p.groups * a.channels; i += kThreads) {
    const int group = i / a.channels, c = i - group * a.channels;
    float sum = 0;
    for (int row = group; row < a.rows; row += p.groups) sum += load(x + static_cast<int64_t>(row) * a.pitch + c);
    shared_store(input + i * 4, sum);
  }
  block_sync();
  for (int c = thread_id(); c < a.channels; c += kThreads) {
    float sum = 0;
    for (int group = 0; group < p.groups; ++group) sum += shared_load<float>(input + (group * a.channels + c) * 4);
    shared_store(c * 4, sum);
  }
  block_sync();

  const int first = block_id().x * kOutputs, end = first + kOutputs < a.outputs ? first + kOutputs : a.outputs;
  float* y = a.y + image * a.out_pitch;
  const T* weight = static_cast<const T*>(a.weight);
  if (a.hidden == 0) {
    layer<T>(0, weight, a.bias, 0, y, first, end, a.channels, a.act);
    return;
  }
  layer<T>(0, weight, a.bias, hidden, nullptr, 0, a.hidden, a.channels, a.act);
  block_sync();
  layer<T>(hidden, static_cast<const T*>(a.weight2), a.bias2, 0, y, first, end, a.hidden, a.act2);
}

}  // namespace

void gate(const GateArgs& a, const Stream& stream) {
  Params p{a, kThreads / a.channels};
  if (p.groups > a.rows) p.groups = a.rows;
  if (p.groups < 1) p.groups = 1;
  const Index grid{(a.outputs + kOutputs - 1) / kOutputs, a.images, 1};
  const int shared = ((1 + p.groups) * a.channels + a.hidden) * 4;
  launch(a.type == kHalf ? gate_kernel<half_t> : gate_kernel<bf16_t>, "gate", grid, kThreads, shared, p, stream);
}

}  // namespace gpu
}  // namespace stdc
