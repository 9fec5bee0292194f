// Matrix-vector products of averages: attention, feature fusion, global context.
#include <algorithm>

#include "tile_product.cuh"
#include "launch.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kOutputs = 16;  // of a block: one a warp

struct Params {
  GateArgs a;
  int vectors;  // of four channels, a row
  int groups;   // of threads that add up rows side by side
  int aligned;  // rows, to 16 bytes, with whole vectors
};

STDC_DEVICE float activate(float x, int act) {
  if (act == kRelu) return x < 0 ? 0 : x;
  if (act == kNone) return x;
  return (act == kSigmoidPlus1 ? 1 : 0) + 1 / (1 + exponential(-x));
}

// Eight numbers of a row of weights and of x in shared memory, or the first `count` of them.
template <class T>
STDC_DEVICE float products_of_8(const T* weight, uint32_t x, int count, bool aligned) {
  const Vec w = aligned ? load_weight(reinterpret_cast<const Vec*>(weight)) : load_some<T, true>(weight, count);
  float sum = 0;
  STDC_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (2 * i < count) sum += low_of<T>(w.word[i]) * shared_load<float>(x + 8 * i);
    if (2 * i + 1 < count) sum += high_of<T>(w.word[i]) * shared_load<float>(x + 8 * i + 4);
  }
  return sum;
}

// y[first..last) = act(weight x + bias), each by one warp, in a fixed order; x and y in shared memory, or y is `out`.
// A warp has some outputs at once, so that all their weights are on their way.
template <class T>
STDC_DEVICE void layer(uint32_t x, const T* weight, const float* bias, uint32_t y, float* out, int first, int last,
                       int channels, int act) {
  constexpr int kTogether = 4;
  const bool aligned = channels % 8 == 0;
  STDC_ROLLED
  for (int start = first + warp_id(); start < last; start += kTogether * kWarps) {
    float sum[kTogether] = {};
    STDC_ROLLED
    for (int c = lane_id() * 8; c < channels; c += 256)
      STDC_UNROLL
      for (int k = 0; k < kTogether; ++k) {
        const int n = start + k * kWarps;
        if (n < last)
          sum[k] += products_of_8(weight + static_cast<int64_t>(n) * channels + c, x + c * 4, channels - c, aligned);
      }
    STDC_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      STDC_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) sum[k] += shuffle_xor(sum[k], mask);
      const int n = start + k * kWarps;
      if (lane_id() > 0 || n >= last) continue;
      const float result = activate(sum[k] + load_weight(bias + n), act);
      if (out != nullptr)
        store(out + n, result);
      else
        shared_store(y + n * 4, result);
    }
  }
}

template <class T>
STDC_KERNEL(kThreads, 1)
gate_kernel(const STDC_CONSTANT Params p) {
  launch_dependents<kFirst>();
  const GateArgs& a = p.a;
  const int64_t image = block_id().y;
  const uint32_t input = a.channels * 4, hidden = input + p.groups * a.channels * 4;  // after the sums
  grid_wait();

  // Averages: groups of threads have every `groups`-th row, four channels a thread, then these are added up.
  const float* x = a.x + image * a.rows * a.pitch;
  for (int i = thread_id(); i < p.groups * p.vectors; i += kThreads) {
    const int group = i / p.vectors, c = (i - group * p.vectors) * 4;
    float sum[4] = {};
    STDC_UNROLL_4
    for (int row = group; row < a.rows; row += p.groups) {
      const float* from = x + static_cast<int64_t>(row) * a.pitch + c;
      if (p.aligned) {
        const Vec v = load(reinterpret_cast<const Vec*>(from));
        STDC_UNROLL
        for (int k = 0; k < 4; ++k) sum[k] += as_float(v.word[k]);
      } else {
        STDC_UNROLL
        for (int k = 0; k < 4; ++k) sum[k] += c + k < a.channels ? load(from + k) : 0;
      }
    }
    STDC_UNROLL
    for (int k = 0; k < 4; ++k)
      if (c + k < a.channels) shared_store(input + (group * a.channels + c + k) * 4, sum[k]);
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
  Params p{a, rounded_up(a.channels, 4), 1, 0};
  p.groups = std::clamp(kThreads / p.vectors, 1, a.rows);
  p.aligned = reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.pitch % 4 == 0 && a.channels % 4 == 0;
  const Index grid{rounded_up(a.outputs, kOutputs), a.images, 1};
  const int shared = ((1 + p.groups) * a.channels + a.hidden) * 4;
  const Kernel<Params> of[kTypes] = {gate_kernel<half_t>, gate_kernel<bf16_t>};
  launch(of[a.type], "gate", grid, kThreads, shared, p, stream);
}

}  // namespace gpu
}  // namespace stdc
