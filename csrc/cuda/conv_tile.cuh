// A block of a convolution: 1x1, 3x3 with stride 1 and 2, and the sub-pixel form of a doubled map; with their prologues
// and epilogues. The products are of the form's core, Core, which also knows the memory that they need.
#pragma once

#include "classifier.cuh"
#include "epilogue.cuh"
#include "launch.cuh"

namespace stdc {
namespace gpu {
namespace {

struct Params {
  ConvArgs a;
  Source s;
  Divisor width;                     // of a tile
  int tiles_x, tiles, sets_x, sets;  // tiles of one set; sets of one image
  int aligned;                       // y, to 16 bytes
  float share;                       // of a pixel in an average
  int gate_columns, gate_blocks;     // columns of the grid that have a gate's blocks, and the number of these
  Gate gate;
  uint32_t classifier_at;            // in shared memory
};

// A block of a gate that runs beside the convolution.
template <class T, class F>
STDC_DEVICE void compute_gate(const Params& p, int block) {
  const GateArgs& a = p.a.beside;
  const int of_image = p.gate_blocks / a.images, image = block / of_image;
  const int begin = (block - image * of_image) * kGateOutputs;
  const int end = begin + kGateOutputs < a.outputs ? begin + kGateOutputs : a.outputs;
  const bool exists = block < p.gate_blocks;
  if (exists) fetch_gate<F::kThreads, kSimple>(p.gate, begin, end);
  cp_async_commit();
  grid_wait();
  if (!exists) return;
  cp_async_wait<0>();  // before the barriers of add_rows
  add_rows<F::kThreads, kSimple>(p.gate, image);
  run_gate<T, F::kThreads, kGateLanes, kSimple>(p.gate, begin, end, 0, a.y + image * a.out_pitch);
}

template <class T, class F>
STDC_DEVICE void convolve(const Params& p) {
  using Core = typename F::Core;
  launch_dependents<kFirst>();
  const ConvArgs& a = p.a;
  Index block = block_id();
  block.x -= p.gate_columns;
  if (block.x < 0) {
    if constexpr (!is_levels<T>::value)
      compute_gate<T, F>(p, ((block.x + p.gate_columns) * grid_size().y + block.y) * grid_size().z + block.z);
    return;
  }

  // Where the tile lies. Sub-pixel: on the small map, for one of its sets of rows and columns.
  const int of_image = p.tiles * p.sets;
  const int image = block.x / of_image, inner = block.x - image * of_image;
  const int set = p.sets > 1 ? inner / p.tiles : 0;
  const int spot = inner - set * p.tiles;
  const int tile_y = spot / p.tiles_x, tile_x = spot - tile_y * p.tiles_x;
  const int row = tile_y * a.tiling.height, column = tile_x * a.tiling.width;
  Where w;
  w.image = image;
  w.block = block.y * (F::kChannels / 16);
  w.first = p.s.chunks * block.z / a.tiling.split;
  w.last = p.s.chunks * (block.z + 1) / a.tiling.split;
  w.set = 0;
  TilePlace place{image, row, column, 1, a.tiling.height, a.tiling.width, -1, -1};
  int rows = a.out_height, columns = a.out_width;  // of the map that tiles cover
  if (a.kernel == 2) {
    rows = a.height;
    columns = a.width;
    const int set_y = set / p.sets_x, set_x = set - set_y * p.sets_x;
    const int odd_y = set_y & 1, odd_x = set_x & 1;
    // The last row of an odd height belongs to the third set and to no other; columns alike.
    if (a.out_height % 2) {
      if (set_y == 2)
        place.pick_row = rows - 1 - row;
      else
        --rows;
    }
    if (a.out_width % 2) {
      if (set_x == 2)
        place.pick_column = columns - 1 - column;
      else
        --columns;
    }
    w.row = row - 1 + odd_y;
    w.column = column - 1 + odd_x;
    w.set = static_cast<int64_t>(set_y * 3 + set_x) * 4 * p.s.first.units;
    place.row = 2 * row + odd_y;
    place.column = 2 * column + odd_x;
    place.step = 2;
  } else {
    w.row = row * a.stride - a.kernel / 2;
    w.column = column * a.stride - a.kernel / 2;
  }
  if (rows - row < place.rows) place.rows = rows - row;
  if (columns - column < place.columns) place.columns = columns - column;
  if (place.rows <= 0 || place.columns <= 0 || place.pick_row >= place.rows || place.pick_column >= place.columns) {
    grid_wait();  // nothing to do, but kernels are done in their order
    return;
  }

  const int first = block.y * F::kChannels;
  if constexpr (!is_levels<T>::value)
    if (a.classes > 0) fetch_classifier<F>(a, first, p.classifier_at);

  // Products.
  uint32_t pixel[F::kM];
  const int step = a.stride * p.s.pixel;
  lane_pixels<F>(pixel, a.tiling.height * a.tiling.width, p.width, p.s.halo.by * step, step);
  // False in blocks of which another one has the sums.
  const auto summed = [&](auto& sums) {
    if (a.kernel == 1)
      Core::template products<T, F, 1>(p.s, w, pixel, sums);
    else if (a.kernel == 2)
      Core::template products<T, F, 2>(p.s, w, pixel, sums);
    else
      Core::template products<T, F, 3>(p.s, w, pixel, sums);
    launch_dependents<kSummed>();
    return a.tiling.split == 1 ||
           add_up(sums, a.workspace, a.arrivals, block.x * grid_size().y + block.y, a.tiling.split, block.z);
  };
  Sums<F> sums;
  if constexpr (is_levels<T>::value) {
    LevelSums<F> whole;
    if (!summed(whole)) return;
    sums = scaled(whole, a.multipliers, first, a.outputs);
  } else {
    if (!summed(sums)) return;
  }

  // Epilogue.
  finish(sums, a.bias, first, a.outputs, a.act);
  if (a.sums != nullptr) {
    // NOTE: with so many sums, `inner` is worked out anew: no register is left to keep it.
    const int64_t tile = w.image * a.sums_rows + (F::kN >= 32 ? (block_id().x - p.gate_columns) % of_image : inner);
    average(sums, place, p.width, a.sums + tile * a.sums_pitch + first, a.outputs - first, p.share);
  }
  const int64_t area = static_cast<int64_t>(a.out_height) * a.out_width;
  if constexpr (!is_levels<T>::value) {
    if (a.classes > 0) {
      stage_tile<T>(sums);
      block_sync();
      classify<T, F>(a, place, p.width, block.x, p.classifier_at);
      return;
    }
  }
  if (a.planar)
    store_planes(sums, static_cast<float*>(a.y), place, p.width, area, a.out_width, a.out_pitch, first, a.outputs);
  else
    put_tile<T>(sums, {a.inverse, a.out_negative}, a.type, a.y, place, p.width, area, a.out_width, a.out_pitch, first,
                a.outputs, p.aligned);
}

template <class F>
Params params(const ConvArgs& a) {
  Params p{};
  p.a = a;
  Source& s = p.s;
  const Tiling& t = a.tiling;
  s.first = input(a.x, a.channels, a.pitch, a.negative);
  s.second = input(a.other, a.other_channels, a.other_pitch, a.other_negative);
  s.weight = a.weight;
  s.blocks = rounded_up(a.outputs, 16);
  s.height = a.height;
  s.width = a.width;
  s.kernel = a.kernel;
  s.scale = a.scale;
  s.add = a.add;
  s.scale_pitch = a.scale_pitch;
  s.add_kind = a.add_kind;
  s.changes = a.prologue || a.add_kind != kNothing;
  s.add_pitch = a.add_pitch;
  s.add_aligned = aligned(a.add, a.add_pitch);
  F::Core::template complete<F>(s, t, a.stride);
  if (a.gate.outputs > 0) {
    s.gated = 1;
    s.gate = lay_out_simple(a.gate, F::kThreads, a.channels, s.end);
  }
  p.width = divisor(t.width);
  const bool subpixel = a.kernel == 2;
  p.tiles_x = rounded_up(subpixel ? a.width : a.out_width, t.width);
  p.tiles = p.tiles_x * rounded_up(subpixel ? a.height : a.out_height, t.height);
  p.sets_x = subpixel ? 2 + a.out_width % 2 : 1;
  p.sets = p.sets_x * (subpixel ? 2 + a.out_height % 2 : 1);
  p.aligned = takes_vectors(a.y, a.out_pitch, a.inverse);
  if (a.beside.outputs > 0) {
    int end = 0;
    p.gate = lay_out_simple(a.beside, F::kThreads, kGateOutputs, end);
    p.gate_blocks = a.beside.images * rounded_up(a.beside.outputs, kGateOutputs);
    p.gate_columns = rounded_up(p.gate_blocks, rounded_up(a.outputs, F::kChannels) * t.split);
    p.gate_columns = rounded_up(p.gate_columns, t.cluster) * t.cluster;  // clusters of their own
    s.end = std::max(s.end, end);
  }
  if (a.classes > 0) {
    p.classifier_at = std::max(s.end, F::kPixels * kRowBytes<F>);
    s.end = p.classifier_at + kClassifierBytes<F>;
  }
  p.share = 1.f / (static_cast<float>(a.out_height) * static_cast<float>(a.out_width));
  return p;
}

// Launches a kernel that is convolve<T, F>.
template <class F>
void launch_form(Kernel<Params> kernel, const ConvArgs& a, const Stream& stream) {
  check<F>("conv", a.tiling, F::Core::kMostBlocks);
  if (a.other_channels && (a.prologue || a.add_kind != kNothing || a.kernel == 2))
    throw std::runtime_error("conv: two inputs with a prologue or up-sampling");
  if (a.gate.outputs > 0 && (a.kernel == 1 || a.gate.outputs != a.channels || a.gate.images != a.images))
    throw std::runtime_error("conv: a gate of " + std::to_string(a.gate.outputs) + " outputs for " +
                             std::to_string(a.channels) + " channels of a kernel of " + std::to_string(a.kernel));
  if (a.classes > 0 && (!kClassifies<F> || a.classes > kClasses || a.outputs % F::kChannels > 0 || a.planar ||
                        a.kernel == 2 || a.sums != nullptr || a.tiling.split > 1))
    throw std::runtime_error("conv: no classifier of " + std::to_string(a.classes) + " classes on " +
                             std::to_string(a.outputs) + " channels in blocks of " + std::to_string(F::kChannels));
  if (a.multipliers != nullptr &&
      (a.prologue || a.add_kind != kNothing || a.gate.outputs > 0 || a.beside.outputs > 0 || a.classes > 0))
    throw std::runtime_error("conv: levels with a prologue, a gate or a classifier");
  const Params p = params<F>(a);
  const int split = a.tiling.split;
  if (split > p.s.chunks)
    throw std::runtime_error("conv: " + std::to_string(p.s.chunks) + " chunks do not split into " +
                             std::to_string(split));
  // Blocks of a cluster read the same weights, and all of them do all steps.
  if (a.tiling.cluster > 1 && (a.kernel == 2 || a.images * p.tiles % a.tiling.cluster != 0))
    throw std::runtime_error("conv: no clusters of " + std::to_string(a.tiling.cluster) + " for " +
                             std::to_string(a.images * p.tiles) + " tiles of a kernel of " + std::to_string(a.kernel));
  const Index grid{p.gate_columns + a.images * p.tiles * p.sets, rounded_up(a.outputs, F::kChannels), split};
  launch(kernel, "conv", grid, F::kThreads, F::Core::template bytes<F>(p.s), p, stream, a.tiling.cluster);
}

template <class F>
int bytes_of(const ConvArgs& a) {
  check<F>("conv", a.tiling, F::Core::kMostBlocks);
  return F::Core::template bytes<F>(params<F>(a).s);
}

}  // namespace
}  // namespace gpu
}  // namespace stdc
