// 3x3 convolutions by Winograd's F(4x4, 3x3): a quarter of the multiplications, in float32 whatever maps are stored in.
#include "winograd.h"

#include <algorithm>
#include <cstring>

namespace stdc {
namespace {

// Of a map with fewer tiles, reading four times as many weights takes longer than it saves.
constexpr int64_t kFewTiles = 96;
// Where a direct product has instructions for the dtype, tiles save a quarter of the time rather than two thirds, and
// their weights take eight times the memory: only for the convolutions that gain most.
constexpr int64_t kLargeTiles = 512;
constexpr int kLargeWeights = 128 * 64;

// NOTE: a cache line more from one position to the next: powers of two would put all 36 into the same sets.
constexpr int kPad = 16;

bool by_tiles(const Layout& layout, const Op& op) {
  const BufferPlace& out = layout.place(op.output);
  const int64_t tiles = ((out.rows + 3) / 4) * ((out.columns + 3) / 4);
  const int channels = op.inputs[0].channels;
  if (channels % 16 || layout.program.buffer(op.output).store != Store::act) return false;
  switch (layout.kernels.winograd[layout.program.dtype]) {
    case Winograd::most:
      return tiles >= kFewTiles;
    case Winograd::large:
      return tiles >= kLargeTiles && channels * op.output.channels >= kLargeWeights;
    case Winograd::none:
      break;
  }
  return false;
}

class WinogradTiles {
 public:
  WinogradTiles(const Views& views, const Op& op, const PackedWeights& packed, const float* weights, bool relu)
      : v_(views), op_(op), packed_(packed), weights_(weights), relu_(relu), in_(op.inputs[0]),
        channels_(in_.channels), block_(views.kernels.block), most_(views.own.tiles),
        inputs_(reinterpret_cast<float*>(views.scratch)),
        products_(inputs_ + kWinograd * (static_cast<size_t>(most_) * channels_ + kPad)),
        zeros_(products_ + kWinograd * (static_cast<size_t>(most_) * block_ + kPad)) {
    std::memset(zeros_, 0, block_ * sizeof(float));
  }

  void operator()() {
    const Task& t = v_.task;
    across_ = (v_.place(op_.output).columns + 3) / 4;
    const int64_t count = across_ * ((t.rows[1] - t.rows[0] + 3) / 4);
    if (op_.mean)
      for (int64_t y = t.rows[0]; y < t.rows[1]; y++)
        std::memset(sums(y, t.blocks[0]), 0,
                    (std::min(t.blocks[1] * block_, op_.output.channels) - t.blocks[0] * block_) * sizeof(float));
    const int64_t chunks = (count + most_ - 1) / most_;
    for (int64_t i = 0; i < chunks; i++) {
      const int64_t first = count * i / chunks, last = count * (i + 1) / chunks;
      const int64_t tiles = last - first;
      runs(first, last, [&](int64_t y, int64_t x, int64_t n, int64_t done) { transform_in(y, x, n, done, tiles); });
      for (int b = t.blocks[0]; b < t.blocks[1]; b++) {
        multiply(b, tiles);
        runs(first, last, [&](int64_t y, int64_t x, int64_t n, int64_t done) { transform_out(b, y, x, n, done, tiles); });
      }
    }
    for (int b = t.blocks[0]; b < t.blocks[1]; b++) {
      const int first = b * block_;
      v_.border(op_.output, first, std::min(block_, op_.output.channels - first));
    }
  }

 private:
  // Tiles [first, last) of the task, row by row: the first output's place, how many, and how many came before.
  template <class F>
  void runs(int64_t first, int64_t last, F f) {
    for (int64_t t = first; t < last;) {
      const int64_t n = std::min(across_ - t % across_, last - t);
      f(v_.task.rows[0] + 4 * (t / across_), 4 * (t % across_), n, t - first);
      t += n;
    }
  }

  float* sums(int64_t y, int b) const { return v_.sums(v_.task.op, y) + b * block_; }

  void transform_in(int64_t y, int64_t x, int64_t n, int64_t done, int64_t tiles) {
    const BufferPlace& p = v_.place(in_);
    const WinogradIn a{v_.at(in_, y - 1, x - 1), p.pitch, p.channels, inputs_ + done * channels_,
                       static_cast<ptrdiff_t>(tiles * channels_ + kPad), n,
                       static_cast<int>(std::min<int64_t>(6, p.rows + 2 - y)), p.columns + 2 - x, channels_};
    v_.kernels.winograd_in[v_.dtype](a);
  }

  void multiply(int b, int64_t tiles) {
    const Step step{0, channels_, channels_};
    ConvRow row{};
    row.steps = &step;
    row.step_count = 1;
    row.bias = zeros_;
    row.out_step = block_;
    row.pixels = tiles;
    row.channels = block_;
    row.out_f32 = true;
    for (int e = 0; e < kWinograd; e++) {
      row.in = inputs_ + e * (tiles * channels_ + kPad);
      row.weights = weights_ + (static_cast<int64_t>(b) * kWinograd + e) * channels_ * block_;
      row.out = products_ + e * (tiles * block_ + kPad);
      v_.kernels.conv[DType::f32](row);
    }
  }

  void transform_out(int b, int64_t y, int64_t x, int64_t n, int64_t done, int64_t tiles) {
    const BufferPlace& p = v_.place(op_.output);
    const int first = b * block_;
    WinogradOut a{};
    a.in = products_ + done * block_;
    a.position = tiles * block_ + kPad;
    a.tile = block_;
    a.bias = packed_.bias.floats() + first;
    a.out = v_.at(op_.output, y, x) + first * v_.size;
    a.row = p.pitch;
    a.pixel = p.channels;
    a.tiles = n;
    a.rows = static_cast<int>(std::min<int64_t>(4, p.rows - y));
    a.columns = p.columns - x;
    a.channels = std::min(block_, op_.output.channels - first);
    a.relu = relu_;
    if (op_.mean) a.sums = sums(y, b), a.sums_row = op_.output.channels;
    v_.kernels.winograd_out[v_.dtype](a);
  }

  const Views& v_;
  const Op& op_;
  const PackedWeights& packed_;
  const float* const weights_;
  const bool relu_;
  const View in_;
  const int channels_, block_, most_;
  float *inputs_, *products_, *zeros_;  // of the tiles at once, transformed
  int64_t across_ = 0;
};

}  // namespace

void cut_tiles(const Layout& layout, const Op& op, double work, OpLayout& l) {
  if (!by_tiles(layout, op)) return;
  // Tiles at once, so that their transforms stay in the second-level cache.
  l.tiles = std::clamp(4096 / op.inputs[0].channels, 16, 64);
  // Whole rows of tiles, and all blocks if there are rows enough: each task transforms its input anew.
  const double row = l.row_work / 3;
  l.part = std::max(std::min(l.blocks, 4), static_cast<int>(work / (4 * row)));
  l.band = 4 * std::max<int64_t>(1, static_cast<int64_t>(work / (4 * row * l.blocks)));
  if (layout.place(op.output).columns / 4 * (l.band / 4) < l.tiles) l.band *= 2;
  l.band_unit = 4;
}

Bytes winograd_weights(const PackedWeights& packed, const Op& op, DType dtype, int block) {
  constexpr double a = 0.75, b = 1.5;
  constexpr double fa = 2 * a * a * (a * a - b * b), fb = 2 * b * b * (b * b - a * a);
  constexpr double g[6][3] = {{1 / (a * a * b * b), 0, 0}, {1 / fa, a / fa, a * a / fa}, {1 / fa, -a / fa, a * a / fa},
                              {1 / fb, b / fb, b * b / fb}, {1 / fb, -b / fb, b * b / fb}, {0, 0, 1}};
  const int channels = op.inputs[0].channels;
  const auto value = traits(dtype).value;
  const int unit = traits(dtype).unit;
  Bytes bytes(static_cast<size_t>(packed.blocks) * kWinograd * channels * block * sizeof(float));
  auto* to = reinterpret_cast<float*>(bytes.data());
  for (int o = 0; o < packed.blocks; o++)
    for (int c = 0; c < channels; c++)
      for (int n = 0; n < block; n++) {
        double w[3][3], half[6][3];
        for (int t = 0; t < 9; t++) {
          const int64_t k = static_cast<int64_t>(t) * channels + c;
          w[t / 3][t % 3] = value(packed.weights.data() + o * packed.block_bytes,
                                  (k / unit * block + n) * unit + k % unit);
        }
        for (int i = 0; i < 6; i++)
          for (int j = 0; j < 3; j++) half[i][j] = g[i][0] * w[0][j] + g[i][1] * w[1][j] + g[i][2] * w[2][j];
        for (int i = 0; i < 6; i++)
          for (int j = 0; j < 6; j++) {
            const double u = half[i][0] * g[j][0] + half[i][1] * g[j][1] + half[i][2] * g[j][2];
            to[((static_cast<int64_t>(o) * kWinograd + 6 * i + j) * channels + c) * block + n] = static_cast<float>(u);
          }
      }
  return bytes;
}

size_t winograd_scratch(const Op& op, int block, int tiles) {
  const size_t channels = op.inputs[0].channels;
  return (kWinograd * (tiles * (channels + block) + 2 * kPad) + block) * sizeof(float);
}

void winograd(const Views& views, const Op& op, const PackedWeights& packed, const float* weights, bool relu) {
  WinogradTiles(views, op, packed, weights, relu)();
}

}  // namespace stdc
