// Lays a plan out for one size: buffers in one arena, work in bands of rows, in the order in which it is done.
//
// The order is depth-first within a stage: a band of its last op is preceded by just those bands of the others that
// it needs, so that what one op writes is still in the cache when the next one reads it. Threads take tasks from the
// front of the list and wait for what a task reads; since that always comes earlier in the list, nobody waits
// forever, and there is no barrier.
#include <algorithm>

#include "dtypes.h"
#include "layout.h"
#include "op.h"

namespace stdc {
namespace {

// Multiply-adds of one task, at most: some 150 microseconds on one core, so that the end of a stage costs little.
constexpr double kTaskWork = 4e7;
constexpr int64_t kAlign = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

class Layouter {
 public:
  Layouter(const Program& program, const KernelSet& kernels, const Key& key)
      : p_(program), l_(program, kernels, key), count_(static_cast<int>(program.ops.size())) {
    l_.ops.resize(count_);
  }

  Layout make() {
    axes();
    stages();
    size();
    for (int o = 0; o < count_; o++) cut(o);
    place();
    for (int o = 0; o < count_; o++) lay_out(o);
    find_writers();
    schedule();
    return std::move(l_);
  }

 private:
  const Op& op(int o) const { return *p_.ops[o]; }
  bool runs(int o) const { return l_.key.label_height || !op(o).labels_only; }

  void axes() {
    const Key& k = l_.key;
    if (k.frame_height != k.height || k.frame_width != k.width) {
      l_.down_rows = axis(k.frame_height, k.height, k.height, false);
      l_.down_columns = axis(k.frame_width, k.width, k.width, false);
    }
    if (k.label_height) {
      const int b = p_.output.buffer;
      l_.label_rows = axis(p_.rows(b, k.height), k.height, k.label_height, k.exact);
      l_.label_columns = axis(p_.columns(b, k.width), k.width, k.label_width, k.exact);
    }
  }

  // Ops at high resolution that follow each other are one stage, up to the end of an STDC module, so that the next
  // one's maps can take the place of this one's; deeper in, an op's weights are larger than its maps, and each is a
  // stage of its own, and so are all where memory is to be small. A vector needs all of its input.
  void stages() {
    stage_.resize(count_);
    const auto alone = [&](int o) {
      const int stride = p_.buffer(op(o).output).stride;
      return p_.small || stride > 8 || stride == 0;
    };
    int stage = 0;
    for (int o = 0; o < count_; o++) {
      const View& in = op(o).inputs[0];
      int writers = 0;  // of what it reads: several make a concatenation
      for (int w = 0; w < o; w++)
        for (const View& v : op(w).writes) writers += v.buffer == in.buffer;
      const bool whole = in.channels == p_.buffer(in).channels;
      if (o && (alone(o) || alone(o - 1) || (op(o).starts_stage && whole && writers > 1))) stage++;
      stage_[o] = stage;
    }
  }

  // Something that lies in the arena for some stages.
  struct Block {
    size_t bytes;
    int first, last;             // stages
    size_t* offset;
    std::vector<int> ops;        // that use it
  };

  void size() {
    l_.places.resize(p_.buffers.size());
    for (size_t b = 0; b < p_.buffers.size(); b++) {
      const Buffer& buffer = p_.buffers[b];
      BufferPlace& place = l_.places[b];
      place.rows = p_.rows(static_cast<int>(b), l_.key.height);
      place.columns = p_.columns(static_cast<int>(b), l_.key.width);
      place.channels = buffer.channels;
      switch (buffer.store) {
        case Store::act:
        case Store::levels:
          place.item = traits(buffer.store == Store::act ? p_.dtype : DType::u8).bytes;
          place.zero = buffer.zero;
          place.pitch = (place.columns + 2) * place.channels;
          // A step may read a vector past the last channel that it needs.
          place.bytes = aligned((place.rows + 2) * place.pitch * place.item + 64);
          break;
        case Store::vector:
          place.bytes = aligned(place.channels * sizeof(float) + 64);
          break;
        case Store::logits:
          place.pitch = place.columns * place.channels;
          if (l_.key.label_height) place.bytes = aligned(place.rows * place.pitch * sizeof(float));
          break;
        default:
          break;  // the caller's
      }
    }
  }

  void place() {
    std::vector<Block> blocks;
    for (size_t b = 0; b < p_.buffers.size(); b++) {
      BufferPlace& place = l_.places[b];
      Block block{place.bytes, count_, -1, &place.offset, {}};
      for (int o = 0; o < count_; o++) {
        if (!runs(o)) continue;
        bool used = false;
        for (const View& v : op(o).reads) used |= v.buffer == static_cast<int>(b);
        for (const View& v : op(o).writes) used |= v.buffer == static_cast<int>(b);
        if (!used) continue;
        block.first = std::min(block.first, stage_[o]);
        block.last = std::max(block.last, stage_[o]);
        block.ops.push_back(o);
      }
      if (static_cast<int>(b) == p_.output.buffer) block.last = count_;
      if (place.bytes && !block.ops.empty()) blocks.push_back(block);
    }
    for (int o = 0; o < count_; o++)
      if (l_.ops[o].prepared_bytes && runs(o))
        blocks.push_back({static_cast<size_t>(aligned(l_.ops[o].prepared_bytes)), stage_[o], stage_[o],
                          &l_.ops[o].prepared, {o}});
    for (int o = 0; o < count_; o++) {
      const View& output = op(o).output;
      const View& mean = op(o).mean;
      if (!mean) continue;
      Block block{static_cast<size_t>(aligned(l_.place(output).rows * output.channels * sizeof(float) + 64)), stage_[o],
                  stage_[o], &l_.ops[o].sums, {o}};
      for (int r = 0; r < count_; r++)
        for (const View& v : op(r).reads)
          if (v.buffer == mean.buffer) block.last = std::max(block.last, stage_[r]), block.ops.push_back(r);
      blocks.push_back(block);
    }
    if (l_.key.label_height) {
      const BufferPlace& logits = l_.place(p_.output);
      blocks.push_back({static_cast<size_t>(aligned(logits.rows * logits.columns)), 0, count_, &l_.best, {}});
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
      l_.arena = std::max(l_.arena, start + block.bytes);
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
  void cut(int o) {
    OpLayout& l = l_.ops[o];
    op(o).measure(l_, l);
    // Several tasks for each thread.
    const double work = std::min(kTaskWork, std::max(1e5, l.row_work * l.rows * l.blocks / (4.0 * l_.key.threads)));
    l.band = std::max<int64_t>(1, static_cast<int64_t>(work / (l.row_work * l.blocks)));
    l.part = l.blocks;
    op(o).cut(l_, work, l);
    l.band = std::min(l.band, l.rows);
    // Bands and tasks of equal size.
    const int64_t count = (l.rows + l.band - 1) / l.band;
    l.band = (l.rows + count - 1) / count;
    l.band = (l.band + l.band_unit - 1) / l.band_unit * l.band_unit;
    l.bands = static_cast<int>((l.rows + l.band - 1) / l.band);
    l.parts = (l.blocks + l.part - 1) / l.part;
    l.counter = l_.counters;
    l_.counters += l.bands;
    if (!l.prepared_bytes) return;
    l.prepared_bands = static_cast<int>((l.rows + l.band_unit - 1) / l.band_unit);
    l.prepared_counter = l_.counters;
    l_.counters += l.prepared_bands;
  }

  void lay_out(int o) {
    OpLayout& l = l_.ops[o];
    op(o).lay_out(l_, l);
    l_.scratch = std::max(l_.scratch, static_cast<size_t>(aligned(l.scratch)));
  }

  void find_writers() {
    writers_.resize(p_.buffers.size());
    for (int o = 0; o < count_; o++)
      for (const View& v : op(o).writes) writers_[v.buffer].push_back({o, v});
  }

  // Rows of a view that rows [first, last) of the output need: of a vector all.
  Rows needs(const Op& op, const View& v, int64_t first, int64_t last) const {
    if (p_.buffer(v).store == Store::vector) return {0, INT32_MAX};
    const int64_t rows = l_.place(v).rows;
    const Rows r = op.needs(l_, {first, last});
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
          while (emitted_[o] < l_.ops[o].bands) pull(o, first);
      first = last;
    }
  }

  int lookahead() const { return l_.key.threads > 1 ? std::max(1, l_.key.threads / 4) : 0; }

  // Emits the next band of an op, and before it what it needs of the ops of the stage that starts at `first`.
  void pull(int o, int first) {
    const OpLayout& l = l_.ops[o];
    if (l.prepared_bands && !emitted_[o]) prepare(o, first);
    const int band = emitted_[o];
    const int64_t top = band * l.band;
    const int64_t bottom = std::min(top + l.band, l.rows);
    std::vector<Wait> waits = needed(o, first, top, bottom);
    if (l.prepared_bands) waits.push_back({l.prepared_counter, l.prepared_counter + l.prepared_bands, 1});
    wait_for(waits);
    for (int part = 0; part < l.parts; part++) emit(o, top, bottom, part, l.counter + band, false);
    emitted_[o]++;
  }

  // All tasks that prepare an op's inputs.
  void prepare(int o, int first) {
    const OpLayout& l = l_.ops[o];
    for (int band = 0; band < l.prepared_bands; band++) {
      const int64_t top = band * l.band_unit;
      const int64_t bottom = std::min(top + l.band_unit, l.rows);
      wait_for(needed(o, first, top, bottom));
      emit(o, top, bottom, 0, l.prepared_counter + band, true);
    }
  }

  // What has to be done before rows of an op; what of it belongs to the stage is emitted.
  std::vector<Wait> needed(int o, int first, int64_t top, int64_t bottom) {
    std::vector<Wait> waits;
    const auto wait = [&](const OpLayout& other, int first_band, int last_band) {
      waits.push_back({other.counter + first_band, other.counter + last_band, other.parts});
    };
    for (const View& v : op(o).reads) {
      const Rows need = needs(op(o), v, top, bottom);
      for (const auto& [writer, view] : writers_[v.buffer]) {
        if (!overlap(view, v)) continue;
        const OpLayout& other = l_.ops[writer];
        const int low = static_cast<int>(need.last > other.rows ? 0 : need.first / other.band);
        const int high = static_cast<int>(std::min<int64_t>((need.last + other.band - 1) / other.band, other.bands));
        // One band further than needed: a task right after the one that it reads would wait for another thread.
        const int ahead = std::min(high + lookahead(), other.bands);
        while (writer >= first && emitted_[writer] < ahead) pull(writer, first);
        wait(other, low, high);
      }
    }
    for (const int earlier : after_[o])
      if (runs(earlier)) wait(l_.ops[earlier], 0, l_.ops[earlier].bands);
    return waits;
  }

  // Of the tasks that are emitted next.
  void wait_for(const std::vector<Wait>& waits) {
    begin_ = static_cast<int>(l_.waits.size());
    l_.waits.insert(l_.waits.end(), waits.begin(), waits.end());
  }

  void emit(int o, int64_t top, int64_t bottom, int part, int counter, bool prepares) {
    const OpLayout& l = l_.ops[o];
    Task task{};
    task.op = static_cast<uint16_t>(o);
    task.prepares = prepares;
    task.rows[0] = static_cast<int32_t>(top), task.rows[1] = static_cast<int32_t>(bottom);
    task.blocks[0] = l.blocks * part / l.parts, task.blocks[1] = l.blocks * (part + 1) / l.parts;
    task.counter = counter;
    task.waits[0] = begin_, task.waits[1] = static_cast<int>(l_.waits.size());
    l_.tasks.push_back(task);
  }

  const Program& p_;
  Layout l_;
  const int count_;
  std::vector<int> stage_, emitted_;
  int begin_ = 0;  // of the waits of tasks that are emitted next
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

void Op::measure(const Layout& layout, OpLayout& l) const {
  const BufferPlace& out = layout.place(output);
  l.rows = out.rows;
  l.row_work = out.columns * 4.0 * out.channels;  // copies count as a few operations
}

Layout lay_out(const Program& program, const KernelSet& kernels, const Key& key) {
  return Layouter(program, kernels, key).make();
}

}  // namespace stdc
