// Lays a plan out for one size: buffers in one arena, work in bands of rows, in the order in which it is done.
//
// The order is depth-first within a stage: a band of its last op is preceded by just those bands of the others that
// it needs, so that what one op writes is still in the cache when the next one reads it. Threads take tasks from the
// front of the list and wait for what a task reads; since that always comes earlier in the list, nobody waits
// forever, and there is no barrier.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "state.h"

namespace stdc {
namespace {

// Multiply-adds of one task, at most: some 150 microseconds on one core, so that the end of a stage costs little.
constexpr double kTaskWork = 4e7;
constexpr int64_t kAlign = 256;
constexpr int64_t kLongest = 1024;  // elements of one step of a convolution

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Tiles at once, so that their transforms stay in the second-level cache.
int tiles_at_once(int channels) { return std::clamp(4096 / channels, 16, 64); }

struct Range {
  int64_t first, last;
};

class Layout {
 public:
  Layout(const Program& program, const Kernels& kernels, const Key& key) : p_(program), k_(kernels) {
    s_.key = key;
    count_ = static_cast<int>(p_.ops.size());
    if (!key.label_height)
      for (const Op& op : p_.ops)
        if (op.kind == Kind::upsample) skipped_ = static_cast<int>(&op - p_.ops.data());
  }

  Shape make() {
    axes();
    stages();
    place();
    for (int o = 0; o < count_; o++) bands(o);
    find_writers();
    schedule();
    return std::move(s_);
  }

 private:
  bool runs(int op) const { return op != skipped_; }
  const Buffer& buffer(const View& v) const { return p_.buffers[v.buffer]; }

  void axes() {
    const Key& k = s_.key;
    if (k.frame_height != k.height || k.frame_width != k.width) {
      s_.down_rows = axis(k.frame_height, k.height, k.height, false);
      s_.down_columns = axis(k.frame_width, k.width, k.width, false);
    }
    if (k.label_height) {
      const int b = p_.output.buffer;
      s_.label_rows = axis(p_.rows(b, k.height), k.height, k.label_height, k.exact);
      s_.label_columns = axis(p_.columns(b, k.width), k.width, k.label_width, k.exact);
    }
  }

  // Ops at high resolution that follow each other are one stage, up to the end of an STDC module, so that the next
  // one's maps can take the place of this one's; deeper in, an op's weights are larger than its maps, and each is a
  // stage of its own. A vector needs all of its input.
  void stages() {
    stage_.resize(count_);
    int stage = 0;
    for (int o = 0; o < count_; o++) {
      const Op& op = p_.ops[o];
      const bool deep = buffer(op.output).stride > 8 || op.kind == Kind::gate;
      const bool before = o && (buffer(p_.ops[o - 1].output).stride > 8 || p_.ops[o - 1].kind == Kind::gate);
      int writers = 0;  // of what it reads: several make a concatenation
      for (int w = 0; w < o; w++)
        for (const View& v : writes(p_.ops[w])) writers += v.buffer == op.inputs[0].buffer;
      const bool whole = op.inputs[0].channels == buffer(op.inputs[0]).channels;
      if (o && (deep || before || (op.kind == Kind::conv && whole && writers > 1))) stage++;
      stage_[o] = stage;
    }
  }

  std::vector<View> reads(const Op& op) const {
    std::vector<View> found = op.inputs;
    if (op.scale) found.push_back(op.scale);
    if (op.add) found.push_back(op.add);
    return found;
  }
  std::vector<View> writes(const Op& op) const {
    std::vector<View> found{op.output};
    if (op.pooled) found.push_back(op.pooled);
    if (op.mean) found.push_back(op.mean);
    return found;
  }

  // Something that lies in the arena for some stages.
  struct Block {
    size_t bytes;
    int first, last;             // stages
    size_t* offset;
    std::vector<int> ops;        // that use it
  };

  void place() {
    const size_t size = item(p_.dtype);
    s_.places.resize(p_.buffers.size());
    s_.sums.assign(count_, 0);
    std::vector<Block> blocks;
    for (size_t b = 0; b < p_.buffers.size(); b++) {
      const Buffer& buffer = p_.buffers[b];
      Place& place = s_.places[b];
      place.rows = p_.rows(static_cast<int>(b), s_.key.height);
      place.columns = p_.columns(static_cast<int>(b), s_.key.width);
      place.channels = buffer.channels;
      switch (buffer.store) {
        case Store::act:
          place.pitch = (place.columns + 2) * place.channels;
          // A step may read a vector past the last channel that it needs.
          place.bytes = aligned((place.rows + 2) * place.pitch * size + 64);
          break;
        case Store::vector:
          place.bytes = aligned(place.channels * sizeof(float) + 64);
          break;
        case Store::logits:
          place.pitch = place.columns * place.channels;
          if (s_.key.label_height) place.bytes = aligned(place.rows * place.pitch * sizeof(float));
          break;
        default:
          break;  // the caller's
      }
      Block block{place.bytes, count_, -1, &place.offset, {}};
      for (int o = 0; o < count_; o++) {
        if (!runs(o)) continue;
        bool used = false;
        for (const View& v : reads(p_.ops[o])) used |= v.buffer == static_cast<int>(b);
        for (const View& v : writes(p_.ops[o])) used |= v.buffer == static_cast<int>(b);
        if (!used) continue;
        block.first = std::min(block.first, stage_[o]);
        block.last = std::max(block.last, stage_[o]);
        block.ops.push_back(o);
      }
      if (static_cast<int>(b) == p_.output.buffer) block.last = count_;
      if (place.bytes && !block.ops.empty()) blocks.push_back(block);
    }
    for (int o = 0; o < count_; o++) {
      const Op& op = p_.ops[o];
      if (!op.mean) continue;
      const Place& out = s_.places[op.output.buffer];
      Block block{static_cast<size_t>(aligned(out.rows * op.output.channels * sizeof(float) + 64)), stage_[o],
                  stage_[o], &s_.sums[o], {o}};
      for (int r = 0; r < count_; r++)
        for (const View& v : reads(p_.ops[r]))
          if (v.buffer == op.mean.buffer) block.last = std::max(block.last, stage_[r]), block.ops.push_back(r);
      blocks.push_back(block);
    }
    if (s_.key.label_height) {
      const Place& logits = s_.places[p_.output.buffer];
      blocks.push_back({static_cast<size_t>(aligned(logits.rows * logits.columns)), 0, count_, &s_.best, {}});
    }
    fit(blocks);
  }

  // Largest first, each at the lowest place that is free while it lives.
  void fit(std::vector<Block>& blocks) {
    std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.bytes > b.bytes; });
    after_.assign(count_, {});
    for (size_t i = 0; i < blocks.size(); i++) {
      Block& block = blocks[i];
      std::vector<const Block*> together;
      for (size_t j = 0; j < i; j++)
        if (blocks[j].first <= block.last && block.first <= blocks[j].last) together.push_back(&blocks[j]);
      std::sort(together.begin(), together.end(), [](auto* a, auto* b) { return *a->offset < *b->offset; });
      size_t start = 0;
      for (const Block* other : together)
        if (*other->offset < start + block.bytes) start = std::max(start, *other->offset + other->bytes);
      *block.offset = start;
      s_.arena = std::max(s_.arena, start + block.bytes);
    }
    // Who writes into memory that had another use waits for all who used it.
    for (const Block& later : blocks)
      for (const Block& earlier : blocks) {
        if (earlier.last >= later.first || later.ops.empty()) continue;
        if (*earlier.offset >= *later.offset + later.bytes || *later.offset >= *earlier.offset + earlier.bytes) continue;
        for (const int o : later.ops)
          after_[o].insert(after_[o].end(), earlier.ops.begin(), earlier.ops.end());
      }
  }

  // How an op's output is cut into tasks.
  void bands(int o) {
    const Op& op = p_.ops[o];
    const Place& out = s_.places[op.output.buffer];
    const int64_t rows = op.kind == Kind::upsample ? std::max<int64_t>(1, s_.key.label_height)
                         : op.kind == Kind::gate   ? 1
                                                   : out.rows;
    const int blocks =
        op.kind == Kind::conv || op.kind == Kind::down ? (op.output.channels + k_.block - 1) / k_.block : 1;
    double row = out.columns * 4.0 * out.channels;  // of one block of channels; copies count as a few operations
    if (op.kind == Kind::upsample) row = s_.key.label_width * 16.0;
    int64_t elements = 0;
    for (const View& v : op.inputs) elements += v.channels;
    if (op.kind == Kind::conv) row = static_cast<double>(out.columns) * k_.block * op.kernel * op.kernel * elements;
    if (op.kind == Kind::down) row = static_cast<double>(out.columns) * k_.block * (4 * elements + 40);
    // Several tasks for each thread.
    const double work = std::min(kTaskWork, std::max(1e5, row * rows * blocks / (4.0 * s_.key.threads)));
    int64_t band = 1;
    int per_task = blocks;
    const bool whole = p_.buffers[op.output.buffer].store == Store::logits;  // labels need all classes
    if (op.kind == Kind::conv && !whole && buffer(op.output).stride > 8) {
      // Few rows and large weights: a task keeps one block's weights in the cache.
      per_task = 1;
      band = std::max<int64_t>(1, static_cast<int64_t>(work / row));
    } else {
      band = std::max<int64_t>(1, static_cast<int64_t>(work / (row * blocks)));
      if (!whole && band < 4 && blocks > 1) {
        band = std::min<int64_t>(4, rows);
        per_task = std::max(1, static_cast<int>(work / (row * band)));
      }
    }
    if (op.kind == Kind::down) band = std::min<int64_t>(std::max<int64_t>(band, 4), 8);
    const bool tiled = op.kind == Kind::conv && by_tiles(p_, k_, op, out.rows, out.columns);
    s_.tiles.push_back(tiled ? tiles_at_once(op.inputs[0].channels) : 0);
    if (tiled) {
      // Whole rows of tiles, and all blocks if there are rows enough: each task transforms its input anew.
      row /= 3;
      per_task = std::max(std::min(blocks, 4), static_cast<int>(work / (4 * row)));
      band = 4 * std::max<int64_t>(1, static_cast<int64_t>(work / (4 * row * blocks)));
      if (out.columns / 4 * (band / 4) < s_.tiles.back()) band *= 2;
    }
    // The sub-pixel form computes pairs of rows.
    if (op.kind == Kind::conv && op.kernel == 2) band += band % 2;
    band = std::min(band, rows);
    // Bands and tasks of equal size.
    const int64_t count = (rows + band - 1) / band;
    band = (rows + count - 1) / count;
    if (tiled) band = (band + 3) / 4 * 4;
    const int parts = (blocks + per_task - 1) / per_task;
    s_.band_rows.push_back(static_cast<int>(band));
    rows_.push_back(rows);
    bands_.push_back(static_cast<int>((rows + band - 1) / band));
    parts_.push_back(parts);
    blocks_.push_back(blocks);
    first_counter_.push_back(s_.counters);
    s_.counters += bands_.back();
    steps(op);
    scratch(op, band, s_.tiles.back());
  }

  void scratch(const Op& op, int64_t band, int tiles) {
    size_t bytes = 0;
    if (op.kind == Kind::down)
      bytes = (2 * band + 1) * (s_.places[op.inputs[0].buffer].columns + 2) * k_.block * item(p_.dtype) + 64;
    if (tiles) bytes = winograd_scratch(k_, op, tiles);
    if (op.kind == Kind::frame) bytes = (3 * s_.key.frame_width + 4) * sizeof(float);
    if (op.kind == Kind::upsample) bytes = s_.label_columns.runs.size();
    if (op.kind == Kind::gate) {
      bytes = op.inputs[0].channels * sizeof(float);
      for (const auto& layer : op.layers) bytes += p_.weights[layer.weight].shape[0] * sizeof(float);
    }
    s_.scratch = std::max(s_.scratch, static_cast<size_t>(aligned(bytes)));
  }

  void steps(const Op& op) {
    std::vector<Step> steps;
    if (op.kind == Kind::conv || op.kind == Kind::down) {
      const int kernel = op.kind == Kind::down ? 1 : op.kernel;
      const int64_t size = item(p_.dtype);
      const Place& first = s_.places[op.inputs[0].buffer];
      for (int parity = 0; parity < (kernel == 2 ? 4 : 1); parity++)
        for (const View& v : op.inputs) {
          const Place& place = s_.places[v.buffer];
          // From pixel (0, 0) of the first view.
          const ptrdiff_t start = (static_cast<ptrdiff_t>(place.offset) - static_cast<ptrdiff_t>(first.offset)) / size +
                                  (place.pitch + place.channels + v.offset) -
                                  (first.pitch + first.channels + op.inputs[0].offset);
          const bool dense = v.channels == place.channels;  // neighbours' channels lie side by side
          for (int i = 0; i < kernel; i++)
            for (int j = 0; j < (dense ? 1 : kernel); j++) {
              const int dy = kernel == 2 ? i - 1 + parity / 2 : i - kernel / 2;
              const int dx = kernel == 2 ? j - 1 + parity % 2 : j - kernel / 2;
              const int64_t length = dense ? v.channels * kernel : v.channels;
              // In parts, between which the kernels may add up sums.
              for (int64_t done = 0; done < length; done += kLongest)
                steps.push_back({start + dy * place.pitch + dx * place.channels + done, place.channels * op.stride,
                                 std::min(kLongest, length - done)});
            }
        }
    }
    if (op.inputs.size() > 1 && steps.size() > kMostSteps)
      throw std::runtime_error("op " + op.name + ": too many channels of two views");
    s_.steps.push_back(std::move(steps));
  }

  void find_writers() {
    writers_.resize(p_.buffers.size());
    for (int o = 0; o < count_; o++)
      for (const View& v : writes(p_.ops[o])) writers_[v.buffer].push_back({o, v});
  }

  // Rows of the input that rows [first, last) of the output need.
  Range needs(const Op& op, const View& v, int64_t first, int64_t last) const {
    if (buffer(v).store == Store::vector) return {0, INT32_MAX};
    const int64_t rows = s_.places[v.buffer].rows;
    Range r{first, last};
    if (op.kind == Kind::conv && op.kernel == 2)
      r = {first / 2 - 1, (last - 1) / 2 + 2};
    else if (op.kind == Kind::conv && op.kernel == 3)
      r = {first * op.stride - 1, (last - 1) * op.stride + 2};
    else if (op.kind == Kind::conv)
      r = {first * op.stride, (last - 1) * op.stride + 1};
    else if (op.kind == Kind::down)
      r = {2 * first - 1, 2 * last};
    else if (op.kind == Kind::upsample)
      r = {s_.label_rows.first[first], s_.label_rows.first[last - 1] + s_.label_rows.count};
    return {std::clamp<int64_t>(r.first, 0, rows - 1), std::clamp<int64_t>(r.last, 1, rows)};
  }

  static bool overlap(const View& a, const View& b) {
    return a.buffer == b.buffer && a.offset < b.offset + b.channels && b.offset < a.offset + a.channels;
  }

  void schedule() {
    emitted_.assign(count_, 0);
    for (int first = 0; first < count_;) {
      int last = first + 1;
      while (last < count_ && stage_[last] == stage_[first]) last++;
      // The stage's last op pulls the others along; what it does not need comes after it.
      for (int o = last - 1; o >= first; o--)
        if (runs(o))
          while (emitted_[o] < bands_[o]) pull(o, first);
      first = last;
    }
  }

  int lookahead() const { return s_.key.threads > 1 ? std::max(1, s_.key.threads / 4) : 0; }

  // Emits the next band of an op, and before it what it needs of the ops of the stage that starts at `first`.
  void pull(int o, int first) {
    const Op& op = p_.ops[o];
    const int band = emitted_[o];
    const int64_t top = static_cast<int64_t>(band) * s_.band_rows[o];
    const int64_t bottom = std::min(top + s_.band_rows[o], rows_[o]);
    std::vector<Wait> waits;
    for (const View& v : reads(op)) {
      const Range need = needs(op, v, top, bottom);
      for (const auto& [writer, view] : writers_[v.buffer]) {
        if (!overlap(view, v)) continue;
        const int rows = s_.band_rows[writer];
        const int low = static_cast<int>(need.last > rows_[writer] ? 0 : need.first / rows);
        const int high = static_cast<int>(std::min<int64_t>((need.last + rows - 1) / rows, bands_[writer]));
        // One band further than needed: a task right after the one that it reads would wait for another thread.
        const int ahead = std::min(high + lookahead(), bands_[writer]);
        while (writer >= first && emitted_[writer] < ahead) pull(writer, first);
        waits.push_back({first_counter_[writer] + low, first_counter_[writer] + high, parts_[writer]});
      }
    }
    for (const int earlier : after_[o])
      if (runs(earlier))
        waits.push_back({first_counter_[earlier], first_counter_[earlier] + bands_[earlier], parts_[earlier]});
    const int begin = static_cast<int>(s_.waits.size());
    s_.waits.insert(s_.waits.end(), waits.begin(), waits.end());
    const int end = static_cast<int>(s_.waits.size());
    for (int part = 0; part < parts_[o]; part++) {
      Task task{};
      task.op = static_cast<uint16_t>(o);
      task.rows[0] = static_cast<int32_t>(top), task.rows[1] = static_cast<int32_t>(bottom);
      task.blocks[0] = blocks_[o] * part / parts_[o], task.blocks[1] = blocks_[o] * (part + 1) / parts_[o];
      task.counter = first_counter_[o] + band;
      task.waits[0] = begin, task.waits[1] = end;
      s_.tasks.push_back(task);
    }
    emitted_[o]++;
  }

  const Program& p_;
  const Kernels& k_;
  Shape s_;
  int count_ = 0, skipped_ = -1;
  std::vector<int> stage_, bands_, parts_, blocks_, first_counter_, emitted_;
  std::vector<int64_t> rows_;
  std::vector<std::vector<int>> after_;
  struct Writer {
    int op;
    View view;
  };
  std::vector<std::vector<Writer>> writers_;
};

}  // namespace

Axis axis(int64_t source, int64_t between, int64_t size, bool exact) {
  Axis a;
  const bool twice = exact && between != size;
  a.count = twice ? 3 : 2;
  a.first.resize(size);
  a.weights.assign(3 * size, 0);
  // Position i of n lies at i * (m - 1) / (n - 1) of m, as float32, like torch.
  const auto at = [](int64_t i, int64_t n, int64_t m, double& rest) {
    const float place = n > 1 ? static_cast<float>(m - 1) / static_cast<float>(n - 1) * static_cast<float>(i) : 0.0f;
    const int64_t whole = std::min(static_cast<int64_t>(place), m - 1);
    rest = whole + 1 < m ? static_cast<double>(place - static_cast<float>(whole)) : 0;
    return whole;
  };
  for (int64_t i = 0; i < size; i++) {
    double w[3] = {0, 0, 0}, t, u;
    int64_t first;
    if (!twice) {
      first = at(i, size, source, t);
      w[0] = 1 - t, w[1] = t;
    } else {
      const int64_t middle = at(i, size, between, t);
      first = at(middle, between, source, u);
      w[0] += (1 - t) * (1 - u), w[1] += (1 - t) * u;
      if (t > 0) {
        const int64_t second = at(middle + 1, between, source, u) - first;
        // The middle is the larger one, so that its neighbours lie at most one apart.
        w[std::min<int64_t>(second, 2)] += t * (1 - u);
        w[std::min<int64_t>(second + 1, 2)] += t * u;
      }
    }
    a.first[i] = static_cast<int32_t>(first);
    for (int k = 0; k < 3; k++) a.weights[k * size + i] = static_cast<float>(w[k]);
    const uint8_t taps = a.weights[2 * size + i] != 0 ? 3 : 2;
    if (!i || a.first[i] != a.first[i - 1] || taps != a.taps.back()) {
      a.runs.push_back(static_cast<int32_t>(i));
      a.taps.push_back(taps);
    }
  }
  a.runs.push_back(static_cast<int32_t>(size));
  return a;
}

Shape lay_out(const Program& program, const Kernels& kernels, const Key& key) {
  return Layout(program, kernels, key).make();
}

}  // namespace stdc
