// 3x3 convolutions by Winograd's F(4x4, 3x3): a quarter of the multiplications, in float32 whatever maps are stored in.
#include <algorithm>
#include <cstring>

#include "views.h"

namespace stdc {
namespace {

// Of a map with fewer tiles, reading the weights, four times as many as before, takes longer than it saves.
constexpr int64_t kFewTiles = 96;
// Where a direct product has bf16 instructions, tiles save a quarter of the time rather than two thirds, and their
// weights take eight times the memory: only for the convolutions that gain most.
constexpr int64_t kFewTilesBf16 = 512;
constexpr int kFewWeightsBf16 = 128 * 64;

// NOTE: a cache line more from one position to the next: powers of two would put all 36 into the same sets.
constexpr int kPad = 16;

double value(const char* p, int64_t i, bool bf16) {
  if (!bf16) return reinterpret_cast<const float*>(p)[i];
  const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(p)[i]) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

class Tiles : Views {
 public:
  Tiles(Frame& frame, const Task& task, char* scratch)
      : Views(frame, task), in_(op_.inputs[0]), channels_(in_.channels), block_(f_.kernels.block),
        most_(f_.shape.tiles[task.op]), v_(reinterpret_cast<float*>(scratch)),
        m_(v_ + kWinograd * (static_cast<size_t>(most_) * channels_ + kPad)),
        zeros_(m_ + kWinograd * (static_cast<size_t>(most_) * block_ + kPad)) {
    std::memset(zeros_, 0, block_ * sizeof(float));
  }

  void operator()() {
    const Place& out = place(op_.output);
    across_ = (out.columns + 3) / 4;
    const int64_t count = across_ * ((t_.rows[1] - t_.rows[0] + 3) / 4);
    if (op_.mean)
      for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++)
        std::memset(sums(y, t_.blocks[0]), 0,
                    (std::min(t_.blocks[1] * block_, op_.output.channels) - t_.blocks[0] * block_) * sizeof(float));
    const int64_t chunks = (count + most_ - 1) / most_;
    for (int64_t i = 0; i < chunks; i++) {
      const int64_t first = count * i / chunks, last = count * (i + 1) / chunks;
      const int64_t tiles = last - first;
      runs(first, last, [&](int64_t y, int64_t x, int64_t n, int64_t done) { transform_in(y, x, n, done, tiles); });
      for (int b = t_.blocks[0]; b < t_.blocks[1]; b++) {
        multiply(b, tiles);
        runs(first, last, [&](int64_t y, int64_t x, int64_t n, int64_t done) { transform_out(b, y, x, n, done, tiles); });
      }
    }
    for (int b = t_.blocks[0]; b < t_.blocks[1]; b++) {
      const int first = b * block_;
      border(op_.output, first, std::min(block_, op_.output.channels - first));
    }
  }

 private:
  // Tiles [first, last) of the task, row by row: the first output's place, how many, and how many came before.
  template <class F>
  void runs(int64_t first, int64_t last, F f) {
    for (int64_t t = first; t < last;) {
      const int64_t n = std::min(across_ - t % across_, last - t);
      f(t_.rows[0] + 4 * (t / across_), 4 * (t % across_), n, t - first);
      t += n;
    }
  }

  float* sums(int64_t y, int b) const {
    return reinterpret_cast<float*>(f_.arena + f_.shape.sums[t_.op]) + y * op_.output.channels + b * block_;
  }

  void transform_in(int64_t y, int64_t x, int64_t n, int64_t done, int64_t tiles) {
    const Place& p = place(in_);
    const WinogradIn a{at(in_, y - 1, x - 1), p.pitch, p.channels, v_ + done * channels_,
                       static_cast<ptrdiff_t>(tiles * channels_ + kPad), n,
                       static_cast<int>(std::min<int64_t>(6, p.rows + 2 - y)), p.columns + 2 - x, channels_};
    (bf16_ ? f_.kernels.winograd_in_bf16 : f_.kernels.winograd_in_f32)(a);
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
    const auto* weights = reinterpret_cast<const float*>(packed_.winograd.data());
    for (int e = 0; e < kWinograd; e++) {
      row.in = v_ + e * (tiles * channels_ + kPad);
      row.weights = weights + (static_cast<int64_t>(b) * kWinograd + e) * channels_ * block_;
      row.out = m_ + e * (tiles * block_ + kPad);
      f_.kernels.conv_f32(row);
    }
  }

  void transform_out(int b, int64_t y, int64_t x, int64_t n, int64_t done, int64_t tiles) {
    const Place& p = place(op_.output);
    const int first = b * block_;
    WinogradOut a{};
    a.in = m_ + done * block_;
    a.position = tiles * block_ + kPad;
    a.tile = block_;
    a.bias = reinterpret_cast<const float*>(packed_.bias.data()) + first;
    a.out = at(op_.output, y, x) + first * size_;
    a.row = p.pitch;
    a.pixel = p.channels;
    a.tiles = n;
    a.rows = static_cast<int>(std::min<int64_t>(4, p.rows - y));
    a.columns = p.columns - x;
    a.channels = std::min(block_, op_.output.channels - first);
    a.relu = op_.act == kRelu;
    if (op_.mean) a.sums = sums(y, b), a.sums_row = op_.output.channels;
    (bf16_ ? f_.kernels.winograd_out_bf16 : f_.kernels.winograd_out_f32)(a);
  }

  const View in_;
  const int channels_, block_, most_;
  float *v_, *m_, *zeros_;  // transformed inputs and products
  int64_t across_ = 0;
};

}  // namespace

bool by_tiles(const Program& program, const Kernels& kernels, const Op& op, int64_t rows, int64_t columns) {
  if (op.kernel != 3 || op.stride != 1 || op.inputs.size() != 1 || op.inputs[0].channels % 16 ||
      program.buffers[op.output.buffer].store != Store::act)
    return false;
  const int64_t tiles = ((rows + 3) / 4) * ((columns + 3) / 4);
  if (program.dtype == DType::f32 || !kernels.bf16_products) return tiles >= kFewTiles;
  return kernels.winograd_bf16 && tiles >= kFewTilesBf16 &&
         op.inputs[0].channels * op.output.channels >= kFewWeightsBf16;
}

Bytes winograd_weights(const Packed& packed, const Program& program, const Kernels& kernels, const Op& op) {
  constexpr double a = 0.75, b = 1.5;
  constexpr double fa = 2 * a * a * (a * a - b * b), fb = 2 * b * b * (b * b - a * a);
  constexpr double g[6][3] = {{1 / (a * a * b * b), 0, 0}, {1 / fa, a / fa, a * a / fa}, {1 / fa, -a / fa, a * a / fa},
                              {1 / fb, b / fb, b * b / fb}, {1 / fb, -b / fb, b * b / fb}, {0, 0, 1}};
  const int channels = op.inputs[0].channels, block = kernels.block;
  const bool bf16 = program.dtype == DType::bf16;
  const int unit = bf16 ? 2 : 1;
  Bytes bytes(static_cast<size_t>(packed.blocks) * kWinograd * channels * block * sizeof(float));
  auto* to = reinterpret_cast<float*>(bytes.data());
  for (int o = 0; o < packed.blocks; o++)
    for (int c = 0; c < channels; c++)
      for (int n = 0; n < block; n++) {
        double w[3][3], half[6][3];
        for (int t = 0; t < 9; t++) {
          const int64_t k = static_cast<int64_t>(t) * channels + c;
          w[t / 3][t % 3] = value(packed.weights.data() + o * packed.block_bytes,
                                  (k / unit * block + n) * unit + k % unit, bf16);
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

size_t winograd_scratch(const Kernels& kernels, const Op& op, int tiles) {
  const size_t channels = op.inputs[0].channels, block = kernels.block;
  return (kWinograd * (tiles * (channels + block) + 2 * kPad) + block) * sizeof(float);
}

void winograd(Frame& frame, const Task& task, char* scratch) { Tiles(frame, task, scratch)(); }

}  // namespace stdc
