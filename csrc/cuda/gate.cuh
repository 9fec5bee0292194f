// One or two matrix-vector products of averages, by the threads of a block. Weights and biases are no other kernel's,
// so they are on their way to shared memory before other kernels are waited for.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "gpu.h"
#include "primitives.cuh"

namespace stdc {
namespace gpu {

// Which gates code is for. kSimple: one layer, with rows of averages in whole vectors and weights in shared memory.
enum GateKind : int { kAnyGate = 0, kSimple = 1 };

constexpr int kMostResident = 64 << 10;  // bytes of weights that are worth their place in shared memory

struct Layer {
  const void* weight;  // [outputs, vectors of eight]
  const float* bias;
  int vectors, act;
  int row;             // bytes from row to row in shared memory; 0: weights stay where they are
  uint32_t at, bias_at;
};

// A gate, and where its numbers lie in shared memory: the averages first, of channels that do not exist zeros.
struct Gate {
  const float* x;      // [images, rows, channels of pitch]
  int rows, channels, pitch;
  int quads, groups;   // vectors of four channels of a row; groups of threads that add up rows side by side
  int aligned;         // rows, to 16 bytes, with whole vectors
  int hidden, outputs; // hidden 0: one layer, the last
  Layer first, last;
  uint32_t at, sums_at, hidden_at;
};

// Starts the copies of a layer's outputs from `begin` to `end`.
template <int kThreads>
STDC_DEVICE void fetch_layer(const Layer& l, int begin, int end) {
  const Vec* from = static_cast<const Vec*>(l.weight) + static_cast<int64_t>(begin) * l.vectors;
  STDC_ROLLED
  for (int v = thread_id(); l.row > 0 && v < (end - begin) * l.vectors; v += kThreads) {
    const int row = v / l.vectors;
    cp_async(l.at + row * l.row + (v - row * l.vectors) * 16, from + v, 16);
  }
  STDC_ROLLED
  for (int n = thread_id() * 4; n < end - begin; n += kThreads * 4)
    cp_async(l.bias_at + n * 4, l.bias + begin + n, end - begin - n < 4 ? (end - begin - n) * 4 : 16);
}

// Starts the copies of what outputs from `begin`, a multiple of four, to `end` need.
template <int kThreads, GateKind kind>
STDC_DEVICE void fetch_gate(const Gate& g, int begin, int end) {
  if (kind == kAnyGate && g.hidden > 0) fetch_layer<kThreads>(g.first, 0, g.hidden);
  fetch_layer<kThreads>(g.last, begin, end);
}

// Averages to shared memory: groups of threads have every `groups`-th row, four channels a thread, then these are
// added up. Ends with a barrier.
template <int kThreads, GateKind kind>
STDC_DEVICE void add_rows(const Gate& g, int64_t image) {
  constexpr int kTogether = 8;  // rows that are on their way at once
  const float* x = g.x + image * g.rows * g.pitch;
  STDC_ROLLED
  for (int i = thread_id(); i < g.groups * g.quads; i += kThreads) {
    const int group = i / g.quads, c = (i - group * g.quads) * 4;
    float sum[4] = {};
    STDC_ROLLED
    for (int first = group; first < g.rows; first += kTogether * g.groups) {
      Vec v[kTogether] = {};
      STDC_UNROLL
      for (int k = 0; k < kTogether; ++k) {
        const int row = first + k * g.groups;
        if (row >= g.rows) continue;
        const float* from = x + static_cast<int64_t>(row) * g.pitch + c;
        if (kind == kSimple || g.aligned) {
          v[k] = load(reinterpret_cast<const Vec*>(from));
        } else {
          STDC_UNROLL
          for (int n = 0; n < 4; ++n)
            if (c + n < g.channels) v[k].word[n] = as_bits(load(from + n));
        }
      }
      STDC_UNROLL
      for (int k = 0; k < kTogether; ++k)
        STDC_UNROLL
        for (int n = 0; n < 4; ++n) sum[n] += as_float(v[k].word[n]);
    }
    Vec all;
    STDC_UNROLL
    for (int n = 0; n < 4; ++n) all.word[n] = as_bits(sum[n]);
    shared_store(g.sums_at + i * 16, all);
  }
  block_sync();
  const int padded = kind == kAnyGate && g.hidden > 0 ? g.first.vectors * 8 : g.last.vectors * 8;
  STDC_ROLLED
  for (int c = thread_id(); c < padded; c += kThreads) {
    float sum = 0;
    if (c < g.channels)
      for (int group = 0; group < g.groups; ++group)
        sum += shared_load<float>(g.sums_at + (group * g.quads * 4 + c) * 4);
    shared_store(g.at + c * 4, sum);
  }
  block_sync();
}

STDC_DEVICE float activate(float x, int act) {
  if (act == kRelu) return x < 0 ? 0 : x;
  if (act == kNone) return x;
  return (act == kSigmoidPlus1 ? 1 : 0) + 1 / (1 + exponential(-x));
}

// y[begin..end) = act(weight x + bias), each by kLanes lanes, in a fixed order. x is in shared memory; y too, with
// zeros up to `padded` numbers, or it is `out`.
template <class T, int kThreads, int kLanes, GateKind kind>
STDC_DEVICE void run_layer(const Layer& l, uint32_t x, int begin, int end, uint32_t y, int padded, float* out) {
  STDC_ROLLED
  for (int n = begin + static_cast<int>(thread_id()) / kLanes; n - lane_id() / kLanes < end; n += kThreads / kLanes) {
    float sum = 0;
    const Vec* weight = static_cast<const Vec*>(l.weight) + static_cast<int64_t>(n) * l.vectors;
    STDC_UNROLL_4
    for (int v = lane_id() % kLanes; n < end && v < l.vectors; v += kLanes) {
      const bool resident = kind == kSimple || l.row > 0;
      const Vec w = resident ? shared_load<Vec>(l.at + (n - begin) * l.row + v * 16) : load_weight(weight + v);
      const Vec low = shared_load<Vec>(x + v * 32), high = shared_load<Vec>(x + v * 32 + 16);
      STDC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Vec& of = i < 2 ? low : high;
        sum += low_of<T>(w.word[i]) * as_float(of.word[i % 2 * 2]);
        sum += high_of<T>(w.word[i]) * as_float(of.word[i % 2 * 2 + 1]);
      }
    }
    STDC_UNROLL
    for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane_id() % kLanes > 0 || n >= end) continue;
    const float result = activate(sum + shared_load<float>(l.bias_at + (n - begin) * 4), l.act);
    if (out != nullptr)
      store(out + n, result);
    else
      shared_store(y + (n - begin) * 4, result);
  }
  if (out != nullptr) return;
  for (int n = end - begin + thread_id(); n < padded; n += kThreads) shared_store(y + n * 4, 0.f);
}

// Outputs from `begin` to `end`, to shared memory at `y` or to `out`. Averages and weights are there for all threads.
template <class T, int kThreads, int kLanes, GateKind kind>
STDC_DEVICE void run_gate(const Gate& g, int begin, int end, uint32_t y, float* out) {
  uint32_t x = g.at;
  if (kind == kAnyGate && g.hidden > 0) {
    run_layer<T, kThreads, kLanes, kind>(g.first, x, 0, g.hidden, g.hidden_at, g.last.vectors * 8, nullptr);
    block_sync();
    x = g.hidden_at;
  }
  run_layer<T, kThreads, kLanes, kind>(g.last, x, begin, end, y, 0, out);
}

// Of kernels that compute gates on the way.
constexpr int kGateLanes = 4;     // for an output
constexpr int kGateOutputs = 16;  // of a block that computes some outputs of a gate only

inline int up_to(int n, int by) { return (n + by - 1) / by * by; }

// Lays out a gate from byte `at` of shared memory on, for blocks of so many threads that compute `each` of the outputs,
// with `lanes` for each; `at` becomes the end.
inline Gate lay_out(const GateArgs& a, int threads, int each, int lanes, int& at) {
  Gate g{a.x, a.rows, a.channels, a.pitch, up_to(a.channels, 4) / 4, 1, 0, a.hidden, a.outputs, {}, {}, 0, 0, 0};
  g.groups = std::clamp(threads / g.quads, 1, std::max(1, a.rows));
  g.aligned = reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.pitch % 4 == 0 && a.channels % 4 == 0;
  const auto take = [&](int bytes) {
    const int here = at;
    at += up_to(bytes, 16);
    return static_cast<uint32_t>(here);
  };
  g.at = take(up_to(a.channels, 8) * 4);
  g.sums_at = take(g.groups * g.quads * 16);
  if (a.hidden > 0) g.hidden_at = take(up_to(a.hidden, 8) * 4);
  const auto layer = [&](const void* weight, const float* bias, int inputs, int rows, int act) {
    Layer l{weight, bias, up_to(inputs, 8) / 8, act, 0, 0, 0};
    l.bias_at = take(rows * 4);
    // Lanes that read several rows at once meet different banks.
    const int row = lanes < 32 ? up_to(l.vectors * 16, 128) + 64 : l.vectors * 16;
    if (row * rows > kMostResident) return l;
    l.row = row;
    l.at = take(row * rows);
    return l;
  };
  if (a.hidden > 0) g.first = layer(a.weight, a.bias, a.channels, a.hidden, a.act);
  if (a.hidden > 0)
    g.last = layer(a.weight2, a.bias2, a.hidden, each, a.act2);
  else
    g.last = layer(a.weight, a.bias, a.channels, each, a.act);
  return g;
}

// As lay_out, of a gate that a convolution computes on the way.
inline Gate lay_out_simple(const GateArgs& a, int threads, int each, int& at) {
  const Gate g = lay_out(a, threads, each, kGateLanes, at);
  if (a.hidden > 0 || !g.aligned || g.last.row == 0)
    throw std::runtime_error("conv: a gate of " + std::to_string(a.hidden) + " hidden and " +
                             std::to_string(a.channels) + " channels has a kernel of its own");
  return g;
}

}  // namespace gpu
}  // namespace stdc
