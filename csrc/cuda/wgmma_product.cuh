// Products of a convolution with wgmma, for sm_90a: the pixels of tile_pixels.cuh from registers, and weights that bulk
// copies bring into stages of shared memory.
//
// A warp's rows of wgmma's a and c are laid out as those of mma are, so that all else is as in tile_product.cuh: the
// halo, its ldmatrix, the sums and what follows. Weights are in the order of core matrices, see
// stdc_fast/backends/cuda/fragments.py: of each 16 input channels of a tap a block's are one run. One thread fills the
// stages. A full stage ends a phase of its first barrier, a stage that all warps have read one of its second.
//
// Blocks of a cluster have the same channels and steps, and so the same weights. Each brings its share of every unit to
// all of them, at the same places. A block's first barrier counts the bytes from all; its second one counts the warps of
// all, since the thread that fills writes to all. A cluster's barrier lies between the beginning of these barriers and
// their first use by others, and one between their last use and the end of a block.
#pragma once

#include "primitives_hopper.cuh"
#include "tile_product.cuh"

namespace stdc {
namespace gpu {

struct Wgmma;

// Warps along pixels, in groups of four, and of each warp blocks of 16 pixels; all have all channels.
template <int WM, int WN, int MI, int NI, int WK>
struct WarpGroupForm : CompiledForm<WM, WN, MI, NI, WK> {
  using Core = Wgmma;
  static_assert(WM % 4 == 0 && WN == 1 && WK == 1, "warp groups lie along pixels");
};

// The pipeline for a kernel of K x K. A stage has the weights of some units; the pixels of all taps of a step are there
// at once.
template <class F, int K>
struct StagesOf {
  static constexpr int kTaps = K * K;
  static constexpr int kUnits = K == 3 ? 3 : 4;               // of a stage
  static constexpr int kParts = K == 3 ? 3 : 1;               // stages of a step
  static constexpr int kDepth = kUnits * kParts / kTaps;      // of a step, times 16 input channels
  static constexpr int kUnitBytes = F::kChannels * 32;
  static constexpr int kStageBytes = kUnits * kUnitBytes;
  static constexpr int kStages = F::kChannels >= 256 ? 4 : 6;
  static constexpr int kBytes = kStages * kStageBytes;
  static constexpr int kBarrierBytes = 16 * kStages;
  static constexpr int kAhead = kUnits;  // fragments, of which all but the one that is read are being multiplied
};

// Fills stages, in the order in which they are read. Only one thread calls fill().
template <class F, class L>
struct Filler {
  const char* from;
  int64_t unit;         // bytes from unit to unit
  uint32_t bytes;       // of a unit that exist; what is beyond them is computed and not stored
  uint32_t begin;       // of these: where this block's share is in a unit
  Cursor next;
  int part;

  STDC_DEVICE Filler(const Source& s, const Where& w, const Cursor& start) {
    const bool other = w.first >= s.first_chunks;
    const int first = other ? s.first.units + (w.first - s.first_chunks) * s.chunk : w.first * s.chunk;
    unit = static_cast<int64_t>(s.blocks) * kUnitBytes;
    const int blocks = s.blocks - w.block;
    bytes = (blocks < F::kChannels / 16 ? blocks : F::kChannels / 16) * kUnitBytes;
    from = static_cast<const char*>(s.weight) + (w.set + first * L::kTaps) * unit + w.block * kUnitBytes;
    begin = s.cluster > 1 ? cluster_rank() * share(s) : 0;
    from += begin;
    next = start;
    part = 0;
  }
  STDC_DEVICE uint32_t share(const Source& s) const { return bytes >> s.cluster / 2; }  // of clusters of 1, 2 or 4
  STDC_DEVICE bool more(const Where& w) const { return next.chunk < w.last; }
  STDC_DEVICE void fill(const Source& s, uint32_t stage, uint32_t barrier) {
    mbarrier_expect(barrier, L::kUnits * bytes);
    STDC_UNROLL
    for (int u = 0; u < L::kUnits; ++u) {
      const uint32_t to = stage + u * L::kUnitBytes + begin;
      if (s.cluster > 1)
        bulk_multicast(to, from + u * unit, share(s), barrier, (1u << s.cluster) - 1);
      else
        bulk_copy(to, from + u * unit, bytes, barrier);
    }
    // A chunk whose units do not fill its last step: the next one begins after them.
    from += (L::kDepth > 1 && next.left < L::kDepth ? next.left : L::kUnits) * unit;
    if (++part < L::kParts) return;
    part = 0;
    next.advance(s, L::kDepth, 0);
  }
};

struct Wgmma {
  static constexpr int kMostBlocks = 4;  // of a cluster
  template <class T, class F, int K>
  static STDC_DEVICE void products(const Source& s, const Where& w, const uint32_t (&pixel)[F::kM], Sums<F>& sums) {
    using L = StagesOf<F, K>;
    constexpr uint32_t kEnd = L::kBytes;  // of the stages; then pixels
    clear(sums);
    const uint32_t full = s.barriers, empty = full + 8 * L::kStages;
    Cursor now;
    now.begin(s, w, kEnd);
    Filler<F, L> filler(s, w, now);
    // Weights depend on no other kernel; pixels do.
    if (thread_id() == 0) {
      STDC_UNROLL
      for (int i = 0; i < L::kStages; ++i) {
        mbarrier_init(full + 8 * i, 1);
        mbarrier_init(empty + 8 * i, F::kWarps * s.cluster);
      }
      async_fence();
      cluster_fence();
    }
    if (s.cluster > 1) {
      cluster_arrive();
      cluster_wait();
    }
    if (thread_id() == 0) {
      STDC_ROLLED
      for (int i = 0; i < L::kStages && filler.more(w); ++i) filler.fill(s, i * L::kStageBytes, full + 8 * i);
    }
    if (K > 1 && s.gated) {
      fetch_gate<F::kThreads, kSimple>(s.gate, 0, s.first.channels);
      cp_async_commit();
    }
    Cursor ahead = now;
    grid_wait();
    fetch_pixels<T, F>(s, w, ahead, Share<F>(s, w, ahead));
    cp_async_commit();

    if (s.changes) gather_changes<T, F, K == 1 ? 0 : 1>(s, w);
    const uint32_t row = s.halo.by * s.pixel;
    uint32_t stage = 0, phase = 0;
    int begun = 0;  // stages
    const uint32_t released = cluster_address(empty, lane_id() < s.cluster ? lane_id() : 0);
    uint32_t a[L::kAhead][F::kM][4];
    STDC_ROLLED
    while (now.chunk < w.last) {
      if (now.fresh()) {
        if (s.changes) {
          Change change;
          load_change<F>(s, w, now, change);
          cp_async_wait<0>();
          change_pixels<T, F>(s, w, now, change);
        } else {
          cp_async_wait<0>();
        }
        block_sync();  // all see the chunk and its barriers; nobody reads the chunk before any more
        ahead.advance(s, ahead.left, kEnd);
        if (ahead.chunk < w.last) fetch_pixels<T, F>(s, w, ahead, Share<F>(s, w, ahead));
        cp_async_commit();
      }
      STDC_UNROLL
      for (int part = 0; part < L::kParts; ++part) {
        // The stage before the last one: warps have released it while they read the last one.
        if (thread_id() == 0 && begun >= 2 && filler.more(w)) {
          const uint32_t old = stage < 2 ? stage + L::kStages - 2 : stage - 2;
          mbarrier_wait(empty + 8 * old, stage < 2 ? phase ^ 1 : phase);
          filler.fill(s, old * L::kStageBytes, full + 8 * old);
        }
        ++begun;
        mbarrier_wait(full + 8 * stage, phase);
        const uint64_t weights = matrix_descriptor(stage * L::kStageBytes, 128, 256);
        STDC_UNROLL
        for (int u = 0; u < L::kUnits; ++u) {
          wgmma_wait<L::kAhead - 1>();  // the last that read these registers is done
          // Of the stage before nothing is under way any more.
          if (u == L::kUnits - 1 && begun > 1 && lane_id() < s.cluster)
            mbarrier_arrive_there(released + 8 * (stage == 0 ? L::kStages - 1 : stage - 1));
          const bool within = K > 1 || u < now.left;  // the chunk
          const uint32_t tap = K == 1 ? (within ? u * 32 : 0)
                                      : K == 2 ? u / 2 * row + u % 2 * s.pixel : part * row + u * s.pixel;
          STDC_UNROLL
          for (int i = 0; i < F::kM; ++i) {
            ldmatrix_x4(a[u][i], pixel[i] + now.pixels + tap);
            STDC_UNROLL
            for (int k = 0; k < 4; ++k)
              if (!within) a[u][i][k] = 0;
          }
          wgmma_fence();
          STDC_UNROLL
          for (int i = 0; i < F::kM; ++i)
            wgmma<T, F::kChannels>(sums.c[i], a[u][i], weights + (u * L::kUnitBytes >> 4));
          wgmma_commit();
        }
        if (++stage == L::kStages) {
          stage = 0;
          phase ^= 1;
        }
      }
      now.advance(s, L::kDepth, kEnd);
    }
    wgmma_wait<0>();
    if (s.cluster > 1) cluster_arrive();  // nothing from here goes to others any more
    STDC_UNROLL
    for (int i = 0; i < F::kM; ++i)
      STDC_UNROLL
      for (int j = 0; j < F::kN; ++j)
        STDC_UNROLL
        for (int k = 0; k < 4; ++k) hold(sums.c[i][j][k]);
    block_sync();  // shared memory may be used for something else
  }

  template <class F>
  static void complete(Source& s, const Tiling& t, int stride) {
    gpu::complete<F>(s, t, stride);
    s.cluster = t.cluster;
    s.buffers = s.chunks > t.split ? 2 : 1;
    s.beside = s.add_kind == kMap ? s.buffers * s.buffer : 0;
    with_stages<F>(s.kernel, [&](auto l) {
      s.change = l.kBytes + s.buffers * s.buffer + s.beside;
      const int loop = s.change + (s.changes ? s.first.units * 128 : 0), tile = F::kPixels * kRowBytes<F>;
      // After the tile too, so that what follows the products does not write over them.
      s.barriers = loop > tile ? loop : tile;
      s.end = s.barriers + l.kBarrierBytes;
    });
  }
  template <class F>
  static int bytes(const Source& s) {
    return s.end;
  }

 private:
  template <class F, class Call>
  static void with_stages(int kernel, const Call& call) {
    if (kernel == 1)
      call(StagesOf<F, 1>{});
    else if (kernel == 2)
      call(StagesOf<F, 2>{});
    else
      call(StagesOf<F, 3>{});
  }
};

}  // namespace gpu
}  // namespace stdc
