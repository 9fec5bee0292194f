// 3x3 convolutions by Winograd's F(4x4, 3x3), a quarter of the multiplications, and sub-pixel ones by F(4x4, 2x2), 25 of
// 64. Tiles are transformed in float32, weights in float64, and rounded to the dtype of the maps; sums are float32.
#include "winograd.h"

#include <algorithm>
#include <cstring>

#include "costs.h"

namespace stdc {
namespace {

// A cache line more from one position to the next: powers of two would put all of them into the same sets.
constexpr int kPad = 64;

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace

bool Winograd::pays(const Program& program, const KernelSet& kernels, const Op& op, int kernel) {
  const int channels = op.inputs[0].channels;
  const Store in_store = program.buffer(op.inputs[0]).store, out_store = program.buffer(op.output).store;
  if (op.inputs.size() != 1 || channels % 32 || in_store != Store::act || out_store == Store::logits) return false;
  if (kernel == 2 && op.mean) return false;
  const auto in = (kernel == 3 ? kernels.winograd3_in : kernels.winograd2_in)[program.dtype];
  const auto out = (kernel == 3 ? kernels.winograd3_out : kernels.winograd2_out)[program.dtype];
  if (!in || !out) return false;
  if (program.small && program.buffer(op.output).stride > 8) return false;
  const int b = op.output.buffer;
  return tiles_pay(kernels, program.dtype, {kernel, 1, channels, op.output.channels,
                                            program.rows(b, kTypicalHeight), program.columns(b, kTypicalWidth)});
}

Winograd::Winograd(const Program& program, const KernelSet& kernels, const Op& op, int kernel, int weight, int bias)
    : taps_(kernel) {
  const int n = taps_ + kTile - 1, block = kernels.block, blocks = blocks_of(op, block);
  const int channels = op.inputs[0].channels, outputs = op.output.channels, taps = taps_ * taps_;
  const DTypeTraits& dtype = traits(program.dtype);
  const Weight& from = program.weights[weight];
  const auto value = traits(from.dtype).value;
  // Row i of the matrix: powers of point i over the products of its distances to the others; infinity's is the last.
  double points[5] = {0}, g[6][3] = {};
  const double* of = taps_ == 3 ? kPoints : kPoints2;
  const int zero = taps_ == 3;  // one more point
  for (int i = 0; i < 4; i++) points[i + zero] = i % 2 ? -of[i / 2] : of[i / 2];
  for (int i = 0; i < n - 1; i++) {
    double product = 1, power = 1;
    for (int j = 0; j < n - 1; j++)
      if (j != i) product *= points[i] - points[j];
    for (int k = 0; k < taps_; k++, power *= points[i]) g[i][k] = power / product;
  }
  g[n - 1][taps_ - 1] = 1;

  position_bytes_ = static_cast<size_t>(channels) * block * dtype.bytes;
  block_bytes_ = position_bytes_ * positions();
  set_bytes_ = block_bytes_ * blocks;
  weights_ = zeros(set_bytes_ * phases());
  bias_ = pack_floats(program, bias, static_cast<int64_t>(blocks) * block);
  std::vector<double> w(taps * block), half(n * taps_ * block);
  for (int p = 0; p < phases(); p++)
    for (int b = 0; b < blocks; b++)
      for (int c = 0; c < channels; c++) {
        const int count = std::min(block, outputs - b * block);
        const int set = 3 * (p / 2) + p % 2;  // of the nine of sub-pixel weights
        for (int o = 0; o < count; o++) {
          const int64_t first = ((static_cast<int64_t>(set) * outputs + b * block + o) * channels + c) * taps;
          for (int t = 0; t < taps; t++) w[t * block + o] = value(from.data, first + t);
        }
        for (int i = 0; i < n; i++)
          for (int j = 0; j < taps_; j++)
            for (int o = 0; o < block; o++) {
              double sum = 0;
              for (int k = 0; k < taps_; k++) sum += g[i][k] * w[(k * taps_ + j) * block + o];
              half[(i * taps_ + j) * block + o] = sum;
            }
        char* to = weights_.data() + p * set_bytes_ + b * block_bytes_;
        for (int e = 0; e < n * n; e++)
          for (int o = 0; o < count; o++) {
            double sum = 0;
            for (int k = 0; k < taps_; k++) sum += g[e % n][k] * half[(e / n * taps_ + k) * block + o];
            dtype.put(to + e * position_bytes_,
                      (static_cast<int64_t>(c) / dtype.unit * block + o) * dtype.unit + c % dtype.unit,
                      static_cast<float>(sum));
          }
      }
}

void Winograd::cut(const Layout& layout, const Op& op, double work, OpLayout& l) const {
  const BufferPlace& out = layout.place(op.output);
  const int channels = op.inputs[0].channels, size = static_cast<int>(traits(layout.program.dtype).bytes);
  const int unit = kTile * step();
  const int64_t across = up(out.columns, unit), down = up(out.rows, unit);
  const double row = unit * l.row_work;  // of tiles of a block
  l.band_unit = unit;
  // Transforms of the tiles at once are to stay in the second-level cache.
  l.tiles = std::clamp(36 * 16384 / size / positions() / channels * 2, 14, 64);
  // Where rows of tiles are many, a task does all blocks of some. Where they are few and weights large, it does some
  // blocks of many, and the input is transformed before.
  if (down >= 4 * layout.key.threads && across >= 14) {
    l.part = l.blocks;
    l.band = unit * std::max<int64_t>(1, static_cast<int64_t>(work / (row * l.blocks)));
  } else {
    l.part = 1;
    l.band = unit * std::clamp<int64_t>(static_cast<int64_t>(work / row), 1, down);
    l.prepared_position = across * down * channels + kPad / size;
    l.prepared_bytes = l.prepared_position * size * positions() * phases();
  }
}

void Winograd::lay_out(const Layout& layout, const Op& op, OpLayout& l) const {
  const int block = layout.kernels.block;
  const size_t size = traits(layout.program.dtype).bytes;
  l.scratch = positions() * (static_cast<size_t>(l.tiles) * block * sizeof(float) + kPad) + block * sizeof(float);
  if (!l.prepared_bytes) l.scratch += positions() * (static_cast<size_t>(l.tiles) * op.inputs[0].channels * size + kPad);
}

// The tiles of one task.
class Winograd::Task {
 public:
  Task(const Winograd& winograd, const Views& views, const Op& op)
      : w_(winograd), v_(views), op_(op), in_(op.inputs[0]), channels_(in_.channels), block_(views.kernels.block),
        positions_(winograd.positions()), unit_(kTile * winograd.step()),
        across_(up(views.place(op.output).columns, unit_)), top_(views.task.rows[0] / unit_),
        count_(across_ * (up(views.task.rows[1], unit_) - top_)) {}

  // Transforms all tiles into the arena.
  void prepare() {
    for (int p = 0; p < w_.phases(); p++)
      for (int64_t y = 0; y < count_ / across_; y++)
        transform_in(p, top_ + y, 0, across_, prepared(p, 0, (top_ + y) * across_), v_.own.prepared_position);
  }

  void run(bool relu, const PackedLevels& levels) {
    const stdc::Task& t = v_.task;
    auto* products = reinterpret_cast<float*>(v_.scratch);
    const int64_t most = v_.own.tiles;
    const ptrdiff_t product = most * block_ + kPad / sizeof(float);
    float* nothing = products + positions_ * product;
    char* inputs = reinterpret_cast<char*>(nothing + block_);
    std::memset(nothing, 0, block_ * sizeof(float));
    if (op_.mean)
      for (int64_t y = t.rows[0]; y < t.rows[1]; y++)
        std::memset(sums(y, t.blocks[0]), 0,
                    (std::min(t.blocks[1] * block_, op_.output.channels) - t.blocks[0] * block_) * sizeof(float));

    const auto multiply = v_.kernels.conv[v_.dtype];
    // In parts, between which the kernels may add up sums: the transforms enlarge what long sums lose.
    std::vector<Step> steps;
    for (int64_t done = 0; done < channels_; done += kLongest / 2)
      steps.push_back({done, channels_, std::min<int64_t>(kLongest / 2, channels_ - done)});
    const int64_t chunks = up(count_, most);
    for (int64_t i = 0; i < chunks; i++) {
      const int64_t first = count_ * i / chunks, last = count_ * (i + 1) / chunks;
      for (int p = 0; p < w_.phases(); p++) {
        const char* in = prepared(p, 0, top_ * across_ + first);
        ptrdiff_t position = v_.own.prepared_position;
        if (!v_.own.prepared_bytes) {
          in = inputs;
          position = most * channels_ + kPad / v_.size;
          runs(first, last, [&](int64_t y, int64_t x, int64_t n, int64_t done) {
            transform_in(p, y, x, n, inputs + done * channels_ * v_.size, position);
          });
        }
        ConvRow row{};
        row.steps = steps.data();
        row.step_count = static_cast<int>(steps.size());
        row.bias = nothing;
        row.out_step = block_;
        row.pixels = last - first;
        row.channels = block_;
        row.to = DType::f32;
        for (int b = t.blocks[0]; b < t.blocks[1]; b++) {
          const char* weights = w_.weights_.data() + p * w_.set_bytes_ + b * w_.block_bytes_;
          for (int e = 0; e < positions_; e++) {
            row.in = in + e * position * v_.size;
            row.weights = weights + e * w_.position_bytes_;
            row.out = products + e * product;
            multiply(row);
          }
          runs(first, last, [&](int64_t y, int64_t x, int64_t n, int64_t done) {
            transform_out(p, b, y, x, n, products + done * block_, product, relu, levels);
          });
        }
      }
    }
    for (int b = t.blocks[0]; b < t.blocks[1]; b++) {
      const int first = b * block_;
      v_.border(op_.output, first, std::min(block_, op_.output.channels - first));
    }
  }

 private:
  // Tiles [first, last) of the task, row by row: the first one's place, how many, and how many came before.
  template <class F>
  void runs(int64_t first, int64_t last, F f) {
    for (int64_t t = first; t < last;) {
      const int64_t n = std::min(across_ - t % across_, last - t);
      f(top_ + t / across_, t % across_, n, t - first);
      t += n;
    }
  }

  char* prepared(int phase, int position, int64_t tile) const {
    return v_.prepared() +
           ((phase * positions_ + position) * v_.own.prepared_position + tile * channels_) * static_cast<int64_t>(v_.size);
  }

  float* sums(int64_t y, int b) const { return v_.sums(v_.task.op, y) + b * block_; }

  // Tiles of a row of tiles from the x-th on.
  void transform_in(int phase, int64_t y, int64_t x, int64_t n, char* to, ptrdiff_t position) {
    const BufferPlace& p = v_.place(in_);
    const int64_t top = kTile * y - 1 + phase / 2, left = kTile * x - 1 + phase % 2;
    const int high = w_.taps_ + kTile - 1;
    const WinogradIn a{v_.at(in_, top, left), p.pitch, p.channels, to, position, channels_, n,
                       static_cast<int>(std::min<int64_t>(high, p.rows + 1 - top)), p.columns + 1 - left, channels_};
    (w_.taps_ == 3 ? v_.kernels.winograd3_in : v_.kernels.winograd2_in)[v_.dtype](a);
  }

  void transform_out(int phase, int b, int64_t y, int64_t x, int64_t n, const float* in, ptrdiff_t position, bool relu,
                     const PackedLevels& levels) {
    const BufferPlace& p = v_.place(op_.output);
    const int first = b * block_, step = w_.step();
    const int64_t top = unit_ * y + phase / 2, left = unit_ * x + phase % 2;
    WinogradOut a{};
    a.in = in;
    a.position = position;
    a.tile = block_;
    a.bias = w_.bias_.floats() + first;
    a.out = v_.at(op_.output, top, left, first);
    const Levels own = levels.from(first);
    if (levels) a.levels = &own;
    a.row = step * p.pitch;
    a.pixel = step * p.channels;
    a.tiles = n;
    a.rows = static_cast<int>(std::clamp<int64_t>((p.rows - top + step - 1) / step, 0, kTile));
    a.columns = std::max<int64_t>(0, (p.columns - left + step - 1) / step);
    a.channels = std::min(block_, op_.output.channels - first);
    a.relu = relu;
    if (op_.mean) a.sums = sums(top, b), a.sums_row = op_.output.channels;
    (w_.taps_ == 3 ? v_.kernels.winograd3_out : v_.kernels.winograd2_out)[v_.dtype](a);
  }

  const Winograd& w_;
  const Views& v_;
  const Op& op_;
  const View in_;
  const int channels_, block_, positions_, unit_;
  const int64_t across_, top_, count_;  // tiles of a row, the first row of tiles, tiles
};

void Winograd::prepare(const Views& views, const Op& op) const { Task(*this, views, op).prepare(); }
void Winograd::run(const Views& views, const Op& op, bool relu, const PackedLevels& levels) const {
  Task(*this, views, op).run(relu, levels);
}

}  // namespace stdc
