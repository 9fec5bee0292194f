// Products of a convolution: a tile of pixels with a block of output channels, on tensor cores.
//
// The pixels of a tile and of its halo lie in shared memory, `chunk` input channels at a time, and all taps are read
// from there. Weights stream through a ring of stages, in the order in which the lanes of a warp multiply them.
// The products are cut into units of 16 input channels of one tap, with all taps of 16 channels after each other, so
// that the weights of a block are one stream. Loop says how many units are a step of the pipeline.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "gpu.h"
#include "primitives.cuh"
#include "tile_pixels.cuh"

namespace stdc {
namespace gpu {

constexpr int kUnitBytes = 512;  // of the weights of 16 input by 16 output channels

struct Mma;

// Warps along pixels and channels, of each warp blocks of 16 pixels and of 8 channels, and slices: as many times these
// warps, which share the units of a step and add up what they have in the end.
template <int WM, int WN, int MI, int NI, int WK>
struct CompiledForm {
  using Core = Mma;
  static constexpr int kWarpsM = WM, kWarpsN = WN, kM = MI, kN = NI, kSlices = WK;
  static constexpr int kPixels = WM * MI * 16, kChannels = WN * NI * 8;
  static constexpr int kOfSlice = WM * WN, kWarps = kOfSlice * WK, kThreads = 32 * kWarps;
  static_assert(NI % 2 == 0 && kChannels % 16 == 0, "weights come in blocks of 16 channels");
};
// A warp's slice, and its place along pixels and along channels.
template <class F>
STDC_DEVICE int slice_of_warp() {
  return F::kSlices > 1 ? warp_id() / F::kOfSlice : 0;
}
template <class F>
STDC_DEVICE int warp_m() {
  return (F::kSlices > 1 ? warp_id() % F::kOfSlice : warp_id()) / F::kWarpsN;
}
template <class F>
STDC_DEVICE int warp_n() {
  return warp_id() % F::kWarpsN;
}

// Input channels of a step, in 16s. Slices share it: it is longer for them, so that barriers are fewer.
constexpr int step_depth(int kernel, int slices) {
  if (slices == 1) return kernel == 1 ? 4 : 1;
  return kernel == 1 ? 8 : kernel == 2 ? 2 : 4;
}

// The pipeline of a form for a kernel of K x K: units of a step, of 16 input channels of one tap, and stages of weights.
template <class F, int K>
struct Loop {
  static constexpr int kTaps = K * K;
  static constexpr int kDepth = step_depth(K, F::kSlices);  // times 16 input channels
  static constexpr int kUnits = kDepth * kTaps;
  static constexpr int kMine = kUnits / F::kSlices;  // of a slice
  static constexpr int kWide = F::kChannels * kDepth;
  static constexpr int kStages = K == 3 ? (kWide >= 128 ? 2 : kWide >= 64 ? 3 : 4) : F::kSlices > 1 ? 3 : 4;
  static constexpr int kStageBytes = kUnits * F::kChannels * 32;
  static constexpr int kBytes = kStages * kStageBytes;
  static_assert(kUnits % F::kSlices == 0, "slices have the same number of units");
};
// Calls f with the Loop of a kernel.
template <class F, class Call>
void with_loop(int kernel, const Call& call) {
  if (kernel == 1)
    call(Loop<F, 1>{});
  else if (kernel == 2)
    call(Loop<F, 2>{});
  else
    call(Loop<F, 3>{});
}

// A thread's copies of a step's weights: in each pass some units side by side.
template <class F, class L>
struct Weights {
  static constexpr int kVectors = F::kChannels * 2;  // of 16 bytes, a unit
  static constexpr int kRatio = F::kThreads / kVectors;
  static constexpr int kGroups = kRatio < 1 ? 1 : kRatio > L::kUnits ? L::kUnits : kRatio;
  static constexpr int kPasses = (L::kUnits + kGroups - 1) / kGroups;
  static constexpr int kEach = (kVectors + F::kThreads - 1) / F::kThreads;  // vectors of a thread in a unit

  const char* from;
  int unit;             // bytes from unit to unit
  int group;            // beyond the last: the thread copies nothing
  uint32_t to;
  int ahead[kEach];     // from the thread's first vector in a unit to the others

  STDC_DEVICE Weights(const Source& s, const Where& w, int first_unit) {
    const int thread = thread_id();
    group = kGroups > 1 ? thread / kVectors : 0;
    const int vector = kGroups > 1 ? thread % kVectors : thread;
    if (kGroups > 1 ? group >= kGroups : kVectors < F::kThreads && vector >= kVectors) group = L::kUnits;
    unit = s.blocks * kUnitBytes;
    const int last = s.blocks - 1 - w.block;  // what is beyond it is computed and not stored
    const auto place = [&](int v) { return (v / 32 < last ? v / 32 : last) * kUnitBytes + v % 32 * 16; };
    from = static_cast<const char*>(s.weight) + (w.set + first_unit + (group < kGroups ? group : 0)) * unit +
           w.block * kUnitBytes + place(vector);
    STDC_UNROLL
    for (int n = 0; n < kEach; ++n) ahead[n] = place(vector + n * F::kThreads) - place(vector);
    to = (group * kVectors + vector) * 16;
  }
  // Starts the copies of one pass of the step.
  STDC_DEVICE void fetch(int pass, uint32_t stage) const {
    if (pass * kGroups + group >= L::kUnits) return;
    const char* here = from + static_cast<int64_t>(pass * kGroups) * unit;
    STDC_UNROLL
    for (int n = 0; n < kEach; ++n) {
      if (n > 0 && (n + 1) * F::kThreads > kVectors && static_cast<int>(thread_id()) + n * F::kThreads >= kVectors)
        continue;
      cp_async(stage + to + (pass * kGroups * kVectors + n * F::kThreads) * 16, here + ahead[n], 16);
    }
  }
  // To the next step; of input channels so many units are left in the chunk.
  STDC_DEVICE void advance(int left) {
    from += static_cast<int64_t>(L::kDepth > 1 && left < L::kDepth ? left * L::kTaps : L::kUnits) * unit;
  }
};

// Sums of a warp, of float or, of levels, int32_t. Lane i has of each 16x8 block rows i / 4 and i / 4 + 8, columns
// 2 (i % 4) and one more.
template <class F, class V = float>
struct Sums {
  V c[F::kM][F::kN][4];
};
template <class F>
using LevelSums = Sums<F, int32_t>;

// What a warp multiplies of one unit.
template <class F>
struct Fragments {
  uint32_t a[F::kM][4];
  Vec b[F::kN / 2];
};

// pixel: where the lane's row of each block of pixels is, for ldmatrix.
template <class F>
STDC_DEVICE void read(Fragments<F>& f, const uint32_t (&pixel)[F::kM], uint32_t offset, uint32_t weights) {
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i) ldmatrix_x4(f.a[i], pixel[i] + offset);
  STDC_UNROLL
  for (int j = 0; j < F::kN / 2; ++j) f.b[j] = shared_load<Vec>(weights + j * kUnitBytes);
}

// What multiplies: numbers of a type, and levels of both kinds.
template <class T>
struct Floats {
  static STDC_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    gpu::mma<T>(c, a, b0, b1);
  }
};
template <bool negative>
struct Levels {
  static STDC_DEVICE void mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_levels<negative>(c, a, b0, b1);
  }
};

template <class P, class F, class V>
STDC_DEVICE void multiply_by(Sums<F, V>& sums, const Fragments<F>& f) {
  STDC_UNROLL
  for (int j = 0; j < F::kN / 2; ++j)
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i) {
      P::mma(sums.c[i][2 * j], f.a[i], f.b[j].word[0], f.b[j].word[1]);
      P::mma(sums.c[i][2 * j + 1], f.a[i], f.b[j].word[2], f.b[j].word[3]);
    }
}
template <class T, class F>
STDC_DEVICE void multiply(Sums<F>& sums, const Fragments<F>& f) {
  multiply_by<Floats<T>>(sums, f);
}

template <class F, class V>
STDC_DEVICE void clear(Sums<F, V>& sums) {
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j)
      STDC_UNROLL
      for (int k = 0; k < 4; ++k) sums.c[i][j][k] = 0;
}

// Where the weights of a warp's lane start in a unit's.
template <class F>
STDC_DEVICE uint32_t lane_weights() {
  return warp_n<F>() * (F::kN / 2) * kUnitBytes + lane_id() * 16;
}

// Whether a warp has the sums of its place after add_slices.
template <class F>
STDC_DEVICE bool leads() {
  return F::kSlices == 1 || warp_id() < F::kOfSlice;
}
// Adds the sums of all slices, in their order, to those of the first.
template <class F, class V>
STDC_DEVICE void add_slices(Sums<F, V>& sums) {
  constexpr int kVectors = F::kM * F::kN, kOfSlice = 32 * F::kOfSlice;  // of a thread; threads
  const uint32_t at = thread_id() % kOfSlice * 16;
  const auto place = [&](int slice, int i, int j) {
    return at + ((slice - 1) * kVectors + i * F::kN + j) * kOfSlice * 16;
  };
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i)
    STDC_UNROLL
    for (int j = 0; j < F::kN; ++j) {
      if (leads<F>()) continue;
      Vec v;
      STDC_UNROLL
      for (int k = 0; k < 4; ++k) v.word[k] = as_bits(sums.c[i][j][k]);
      shared_store(place(slice_of_warp<F>(), i, j), v);
    }
  block_sync();
  if (leads<F>())
    STDC_UNROLL
    for (int slice = 1; slice < F::kSlices; ++slice)
      STDC_UNROLL
      for (int i = 0; i < F::kM; ++i)
        STDC_UNROLL
        for (int j = 0; j < F::kN; ++j) {
          const Vec v = shared_load<Vec>(place(slice, i, j));
          STDC_UNROLL
          for (int k = 0; k < 4; ++k) sums.c[i][j][k] += from_bits<V>(v.word[k]);
        }
  block_sync();
}

// All products of a block, in warps that lead. pixel: of each block of 16 the byte offset of the lane's in the halo.
template <class T, class F, int K, class V>
STDC_DEVICE void products(const Source& s, const Where& w, const uint32_t (&pixel)[F::kM], Sums<F, V>& sums) {
  using L = Loop<F, K>;
  constexpr bool kChanges = !is_levels<T>::value;  // levels are multiplied as they are
  constexpr uint32_t kEnd = L::kBytes;  // of the stages; then pixels
  clear(sums);

  // Weights depend on no other kernel; pixels do.
  Cursor ahead;
  ahead.begin(s, w, kEnd);
  const Cursor start = ahead;
  const bool in_other = w.first >= s.first_chunks;
  const int first = in_other ? s.first.units + (w.first - s.first_chunks) * s.chunk : w.first * s.chunk;
  Weights<F, L> stream(s, w, first * L::kTaps);
  STDC_UNROLL
  for (int i = 0; i < L::kStages - 1; ++i) {
    if (ahead.chunk >= w.last) continue;
    STDC_UNROLL
    for (int pass = 0; pass < stream.kPasses; ++pass) stream.fetch(pass, i * L::kStageBytes);
    // A chunk whose units do not fill its last step: the next one begins after them.
    stream.advance(ahead.left);
    ahead.advance(s, L::kDepth, kEnd);
  }
  if (kChanges && K > 1 && s.gated) {
    fetch_gate<F::kThreads, kSimple>(s.gate, 0, s.first.channels);
    cp_async_commit();
  }
  ahead = start;
  Share<F> share(s, w, ahead);
  grid_wait();
  STDC_ROLLED
  for (int i = 0; i < L::kStages - 1; ++i) {
    if (ahead.chunk < w.last) {
      if (i > 0) share = Share<F>(s, w, ahead);
      if (ahead.fresh()) fetch_pixels<T, F>(s, w, ahead, share);
      ahead.advance(s, L::kDepth, kEnd);
    }
    cp_async_commit();  // NOTE: the first weights of all stages are in the first group
  }

  if constexpr (kChanges)
    if (s.changes) gather_changes<T, F, K == 1 ? 0 : L::kStages - 1>(s, w);
  const int slice = slice_of_warp<F>();
  const uint32_t lane = lane_weights<F>() + slice * F::kChannels * 32;
  const uint32_t row = s.halo.by * s.pixel;
  // Where the pixels of a unit are. The warp's slice has every kSlices-th unit of a step.
  const auto of = [&](int unit) {
    const int tap = unit % L::kTaps;
    return static_cast<uint32_t>(unit / L::kTaps * 32 + tap / K * row + tap % K * s.pixel);
  };
  constexpr uint32_t kSlice = F::kSlices * F::kChannels * 32;  // bytes of weights from one to the next
  uint32_t tap[L::kMine];
  STDC_UNROLL
  for (int i = 0; i < L::kMine; ++i) tap[i] = of(i * F::kSlices + slice);
  Cursor now = start;
  uint32_t stage = 0, free = (L::kStages - 1) * L::kStageBytes;
  STDC_ROLLED
  while (now.chunk < w.last) {
    if constexpr (kChanges) {
      if (s.changes && now.fresh()) {
        Change change;
        load_change<F>(s, w, now, change);
        cp_async_wait<L::kStages - 2>();
        change_pixels<T, F>(s, w, now, change);
      } else {
        cp_async_wait<L::kStages - 2>();
      }
    } else {
      cp_async_wait<L::kStages - 2>();
    }
    block_sync();  // all see what the others fetched; nobody reads the stage before any more
    const bool more = ahead.chunk < w.last;
    const auto fetch = [&](int i) {  // among reads and products, whose time hides what it takes
      if (i == 0 && more && ahead.fresh()) fetch_pixels<T, F>(s, w, ahead, Share<F>(s, w, ahead));
      STDC_UNROLL
      for (int pass = i; pass < stream.kPasses; pass += L::kMine + 1)
        if (more) stream.fetch(pass, free);
    };
    const auto step = [&](auto by) {
      using P = decltype(by);
      if (L::kDepth == 1 || now.left >= L::kDepth) {
        Fragments<F> f[2];  // one is read while the other is multiplied
        STDC_UNROLL
        for (int i = 0; i <= L::kMine; ++i) {
          if (i < L::kMine) read(f[i % 2], pixel, now.pixels + tap[i], stage + lane + i * kSlice);
          fetch(i);
          if (i > 0) multiply_by<P>(sums, f[(i - 1) % 2]);
        }
      } else {  // the last step of a chunk that has no more units
        STDC_UNROLL
        for (int i = 0; i <= L::kMine; ++i) fetch(i);
        STDC_ROLLED
        for (int unit = slice; unit < now.left * L::kTaps; unit += F::kSlices) {
          Fragments<F> f;
          read(f, pixel, now.pixels + of(unit), stage + lane + (unit - slice) * F::kChannels * 32);
          multiply_by<P>(sums, f);
        }
      }
    };
    if constexpr (!is_levels<T>::value) {
      step(Floats<T>{});
    } else if (now.chunk < s.first_chunks ? s.first.negative : s.second.negative) {
      step(Levels<true>{});
    } else {
      step(Levels<false>{});
    }
    cp_async_commit();
    if (more) {
      stream.advance(ahead.left);
      ahead.advance(s, L::kDepth, kEnd);
    }
    now.advance(s, L::kDepth, kEnd);
    stage = stage + L::kStageBytes == kEnd ? 0 : stage + L::kStageBytes;
    free = free + L::kStageBytes == kEnd ? 0 : free + L::kStageBytes;
  }
  block_sync();  // shared memory may be used for something else; copies still on their way have nothing to copy
  if (F::kSlices > 1) add_slices(sums);
}

// Pixels of a lane, for ldmatrix: of each of its blocks of 16 the row (y, x) times pitch and step, in bytes, and the
// half of the channels. Those beyond the tile read its first pixel.
template <class F>
STDC_DEVICE void lane_pixels(uint32_t (&pixel)[F::kM], int count, const Divisor& width, int row, int column) {
  STDC_UNROLL
  for (int i = 0; i < F::kM; ++i) {
    int m = (warp_m<F>() * F::kM + i) * 16 + lane_id() % 16;
    if (m >= count) m = 0;
    const int y = divide(m, width), x = m - y * width.by;
    pixel[i] = y * row + x * column + lane_id() / 16 * 16;
  }
}

inline int rounded_up(int n, int by) { return (n + by - 1) / by; }
inline bool aligned(const void* p, int pitch) { return reinterpret_cast<uintptr_t>(p) % 16 == 0 && pitch % 8 == 0; }
inline Input input(const void* x, int channels, int pitch, int negative = 0) {
  const bool vectors = aligned(x, pitch);
  return {x, channels, rounded_up(channels, 16), pitch, vectors, vectors && channels % 8 == 0, negative};
}

// On the host, at each launch: number of buffers of pixels, so that the copies of a step never go where an earlier one
// still reads.
inline int buffers_needed(const Source& s, int depth, int stages) {
  std::vector<int> chunk_of;
  for (int c = 0; c < s.chunks; ++c) {
    const bool other = c >= s.first_chunks;
    const int begin = (other ? c - s.first_chunks : c) * s.chunk;
    const int left = (other ? s.second.units : s.first.units) - begin;
    chunk_of.insert(chunk_of.end(), rounded_up(left < s.chunk ? left : s.chunk, depth), c);
  }
  int most = 1;
  for (size_t i = 0; i < chunk_of.size(); ++i) {
    const size_t end = i + stages - 1 < chunk_of.size() ? i + stages - 1 : chunk_of.size() - 1;
    const int together = chunk_of[end] - chunk_of[i] + 1;
    if (together > most) most = together;
  }
  return most;
}

// Fills in what follows from the inputs and the tile's size.
template <class F>
void complete(Source& s, const Tiling& t, int stride) {
  s.chunk = t.chunk / 16;
  s.first_chunks = rounded_up(s.first.units, s.chunk);
  s.chunks = s.first_chunks + rounded_up(s.second.units, s.chunk);
  s.halo_height = (t.height - 1) * stride + s.kernel;
  s.halo = divisor((t.width - 1) * stride + s.kernel);
  s.vectors = divisor(2 * s.chunk);
  s.step = F::kThreads / (2 * s.chunk);
  s.pixel = s.chunk * 32 + 16;
  s.buffer = s.halo_height * s.halo.by * s.pixel;
  with_loop<F>(s.kernel, [&](auto loop) {
    s.buffers = buffers_needed(s, loop.kDepth, loop.kStages);
    s.beside = s.add_kind == kMap ? s.buffers * s.buffer : 0;
    s.change = loop.kBytes + s.buffers * s.buffer + s.beside;
  });
  const int loop = s.change + (s.changes ? s.first.units * 128 : 0);
  const int slices = (F::kSlices - 1) * F::kPixels * F::kChannels * 4;  // add_slices
  s.end = loop > slices ? loop : slices;
}

// Rows of a tile as they lie in shared memory after the products, each with kChannels numbers and 16 bytes between.
template <class F>
constexpr int kRowBytes = F::kChannels * 2 + 16;

// Bytes of shared memory: for the products, and for the tile after them.
template <class F>
int bytes(const Source& s) {
  const int tile = F::kPixels * kRowBytes<F>;
  return s.end > tile ? s.end : tile;
}

// Refuses tiles that no kernel has. clusters: the most blocks of one.
template <class F>
void check(const char* name, const Tiling& t, int clusters = 1) {
  if (t.height >= 1 && t.width >= 1 && t.height * t.width <= F::kPixels && t.chunk >= 16 && t.chunk % 16 == 0 &&
      t.chunk / 8 <= F::kThreads && t.split >= 1 && (t.cluster == 1 || t.cluster == 2 || t.cluster == 4) &&
      t.cluster <= clusters)
    return;
  throw std::runtime_error(std::string(name) + ": no tiles of " + std::to_string(t.height) + "x" +
                           std::to_string(t.width) + " in blocks of " + std::to_string(F::kPixels) + " pixels, " +
                           std::to_string(t.chunk) + " channels at once, split " + std::to_string(t.split) +
                           ", in clusters of " + std::to_string(t.cluster));
}

// The core of mma.sync and cp.async, for sm_80 and later. A core has what convolve() of conv_tile.cuh needs.
struct Mma {
  static constexpr int kMostBlocks = 1;  // of a cluster
  template <class T, class F, int K, class V>
  static STDC_DEVICE void products(const Source& s, const Where& w, const uint32_t (&pixel)[F::kM], Sums<F, V>& sums) {
    gpu::products<T, F, K>(s, w, pixel, sums);
  }
  template <class F>
  static void complete(Source& s, const Tiling& t, int stride) {
    gpu::complete<F>(s, t, stride);
  }
  template <class F>
  static int bytes(const Source& s) {
    return gpu::bytes<F>(s);
  }
};

}  // namespace gpu
}  // namespace stdc
