// Executes tasks: rows of one op's output, for some blocks of its channels, through the row kernels.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "views.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stdc {
namespace {

class Run : Views {
 public:
  Run(Frame& frame, const Task& task, char* scratch) : Views(frame, task), scratch_(scratch) {}

  void operator()() {
    switch (op_.kind) {
      case Kind::frame: return frame();
      case Kind::import: return import();
      case Kind::export_: return export_();
      case Kind::conv: return f_.shape.tiles[t_.op] ? winograd(f_, t_, scratch_) : conv();
      case Kind::down: return down();
      case Kind::gate: return gate();
      case Kind::prologue: return prologue();
      case Kind::upsample: return labels();
    }
  }

 private:
  // A raw frame's rows, around which lies the pixel that normalisation maps to zero.
  void frame() {
    const Tensor& in = f_.inputs[input(op_.inputs[0].buffer)];
    const Place& p = place(op_.output);
    const bool resized = !f_.shape.down_columns.first.empty();
    FrameRow row{};
    row.pixels = p.columns;
    row.source = in.shape[2];
    row.scratch = reinterpret_cast<float*>(scratch_);
    std::copy(op_.near, op_.near + 3, row.near);
    for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
      const auto* base = static_cast<const uint8_t*>(in.data);
      if (resized) {
        const Axis& rows = f_.shape.down_rows;
        const int64_t top = rows.first[y];
        row.top = base + top * in.stride[1];
        row.bottom = base + std::min(top + 1, in.shape[1] - 1) * in.stride[1];
        row.weight = rows.weights[p.rows + y];
        row.columns = f_.shape.down_columns.first.data();
        row.weights = f_.shape.down_columns.weights.data() + p.columns;
      } else {
        row.top = base + y * in.stride[1];
      }
      row.out = at(op_.output, y, 0);
      (bf16_ ? f_.kernels.frame_bf16 : f_.kernels.frame_f32)(row);
      pixel(at(op_.output, y, -1));
      pixel(at(op_.output, y, p.columns));
    }
    if (t_.rows[0] == 0)
      for (int64_t x = -1; x <= p.columns; x++) pixel(at(op_.output, -1, x));
    if (t_.rows[1] == p.rows)
      for (int64_t x = -1; x <= p.columns; x++) pixel(at(op_.output, p.rows, x));
  }

  void pixel(char* to) const {
    const float border[4] = {op_.border[0], op_.border[1], op_.border[2], 0};
    const CopyRow row{border, 4, 1, DType::f32, to, 4, 1, f_.program.dtype, 1, 4, 0};
    f_.kernels.copy(row);
  }

  void import() {
    const Tensor& in = f_.inputs[input(op_.inputs[0].buffer)];
    const Place& p = place(op_.output);
    CopyRow row{};
    row.in_pixel = in.stride[2], row.in_channel = in.stride[3], row.in_type = in.dtype;
    row.out_pixel = p.channels, row.out_channel = 1, row.out_type = f_.program.dtype;
    row.pixels = p.columns;
    row.channels = op_.inputs[0].channels;
    row.spare = op_.output.channels - row.channels;
    for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
      row.in = static_cast<const char*>(in.data) + y * in.stride[1] * static_cast<int64_t>(item(in.dtype));
      row.out = at(op_.output, y, 0);
      f_.kernels.copy(row);
    }
    border(op_.output, 0, op_.output.channels);
  }

  int input(int buffer) const {
    const auto& inputs = f_.program.inputs;
    return static_cast<int>(std::find(inputs.begin(), inputs.end(), buffer) - inputs.begin());
  }

  void export_() {
    const Tensor& out = f_.output;
    const Place& p = place(op_.inputs[0]);
    CopyRow row{};
    row.in_pixel = p.channels, row.in_channel = 1, row.in_type = f_.program.dtype;
    row.out_pixel = out.stride[2], row.out_channel = out.stride[3], row.out_type = out.dtype;
    row.pixels = p.columns;
    row.channels = op_.output.channels;
    for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
      row.in = at(op_.inputs[0], y, 0);
      row.out = static_cast<char*>(out.data) + y * out.stride[1] * static_cast<int64_t>(item(out.dtype));
      f_.kernels.copy(row);
    }
  }

  // Logits lie densely, in the arena or at the caller's.
  float* logits(int64_t y) const {
    const Place& p = place(f_.program.output);
    char* base = f_.shape.key.label_height ? f_.arena + p.offset : static_cast<char*>(f_.output.data);
    return reinterpret_cast<float*>(base) + y * p.pitch;
  }

  // Steps that read the second input's row y, whose pitch is another.
  const Step* both(const std::vector<Step>& steps, int64_t y) {
    std::copy(steps.begin(), steps.end(), both_);
    int64_t left = op_.kernel * op_.kernel * op_.inputs[0].channels;  // elements of the first input
    for (size_t i = 0; i < steps.size(); i++) {
      if (left <= 0) both_[i].offset += y * (place(op_.inputs[1]).pitch - place(op_.inputs[0]).pitch);
      left -= both_[i].length;
    }
    return both_;
  }

  void conv() {
    const bool dense = store(op_.output) == Store::logits;
    const Place& out = place(op_.output);
    const int block = f_.kernels.block;
    const auto kernel = bf16_ ? f_.kernels.conv_bf16 : f_.kernels.conv_f32;
    const std::vector<Step>& steps = f_.shape.steps[t_.op];
    const int sets = op_.kernel == 2 ? 4 : 1;
    ConvRow row{};
    row.step_count = static_cast<int>(steps.size()) / sets;
    row.relu = op_.act == kRelu;
    row.out_f32 = dense;
    for (int b = t_.blocks[0]; b < t_.blocks[1]; b++) {
      const int first = b * block;
      row.channels = std::min(block, op_.output.channels - first);
      row.bias = reinterpret_cast<const float*>(packed_.bias.data()) + first;
      for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
        char* to = dense ? reinterpret_cast<char*>(logits(y) + op_.output.offset) : at(op_.output, y, 0);
        char* const begin = to + first * (dense ? sizeof(float) : size_);
        if (op_.mean) {
          row.sums = reinterpret_cast<float*>(f_.arena + f_.shape.sums[t_.op]) + y * op_.output.channels + first;
          std::memset(row.sums, 0, row.channels * sizeof(float));
        }
        if (op_.kernel != 2) {
          row.in = at(op_.inputs[0], y * op_.stride, 0);
          row.steps = op_.inputs.size() > 1 ? both(steps, y * op_.stride) : steps.data();
          row.weights = packed_.weights.data() + b * packed_.block_bytes;
          row.out = begin;
          row.out_step = out.channels;
          row.pixels = out.columns;
          kernel(row);
          continue;
        }
        // Even and odd columns; the last one of an odd width has weights of its own, and so have rows.
        const int last = y == out.rows - 1 && out.rows % 2;
        const int row_set = last ? 2 : static_cast<int>(y % 2);
        const size_t pixel = out.channels * size_;
        const auto columns = [&](int parity, int set, int64_t from, int64_t count) {
          if (count <= 0) return;
          row.in = at(op_.inputs[0], y / 2, from);
          row.steps = steps.data() + (2 * (y % 2) + parity) * row.step_count;
          row.weights = packed_.weights.data() + (3 * row_set + set) * packed_.set_bytes + b * packed_.block_bytes;
          row.out = begin + (2 * from + parity) * pixel;
          row.out_step = 2 * out.channels;
          row.pixels = count;
          kernel(row);
        };
        const int64_t half = out.columns / 2;
        columns(0, 0, 0, half);
        columns(1, 1, 0, half);
        if (out.columns % 2) columns(0, 2, half, 1);
      }
      if (!dense) border(op_.output, first, row.channels);
    }
    if (dense && f_.shape.key.label_height) {
      auto* best = reinterpret_cast<uint8_t*>(f_.arena + f_.shape.best);
      for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++)
        f_.kernels.best(logits(y), out.channels, static_cast<int>(out.channels), out.columns, best + y * out.columns);
    }
  }

  void down() {
    const View& in = op_.inputs[0];
    const Place& from = place(in);
    const Place& out = place(op_.output);
    const int block = f_.kernels.block;
    const int64_t pitch = (from.columns + 2) * block;  // of the map between, which only lives here
    const int64_t top = 2 * static_cast<int64_t>(t_.rows[0]) - 1;
    const auto between = [&](int64_t y) { return scratch_ + (y - top) * pitch * size_; };
    for (int b = t_.blocks[0]; b < t_.blocks[1]; b++) {
      const int first = b * block;
      const int channels = std::min(block, op_.output.channels - first);
      ConvRow row{};
      row.steps = f_.shape.steps[t_.op].data();
      row.step_count = 1;
      row.weights = packed_.weights.data() + b * packed_.block_bytes;
      row.bias = reinterpret_cast<const float*>(packed_.bias.data()) + first;
      row.out_step = block;
      row.pixels = from.columns;
      row.channels = channels;
      row.relu = true;
      for (int64_t y = top; y < 2 * static_cast<int64_t>(t_.rows[1]); y++) {
        if (y < 0 || y >= from.rows) {
          std::memset(between(y), 0, pitch * size_);
          continue;
        }
        std::memset(between(y), 0, block * size_);
        std::memset(between(y) + (from.columns + 1) * block * size_, 0, block * size_);
        row.in = at(in, y, 0);
        row.out = between(y) + block * size_;
        (bf16_ ? f_.kernels.conv_bf16 : f_.kernels.conv_f32)(row);
      }
      DownRow last{};
      last.in_step = block;
      last.weights = reinterpret_cast<const float*>(packed_.depthwise.data()) + 9 * first;
      last.bias = reinterpret_cast<const float*>(packed_.biases[0].data()) + first;
      last.out_step = out.channels;
      last.pixels = out.columns;
      last.width = from.columns;
      last.channels = channels;
      last.count_include_pad = op_.count_include_pad;
      for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
        for (int i = 0; i < 3; i++) last.in[i] = between(2 * y - 1 + i);
        last.rows_inside = 3 - (y == 0) - (2 * y + 1 >= from.rows);
        last.out = at(op_.output, y, 0) + first * size_;
        if (op_.pooled) {
          last.pooled = at(op_.pooled, y, 0) + first * size_;
          last.pooled_step = place(op_.pooled).channels;
        }
        (bf16_ ? f_.kernels.down_bf16 : f_.kernels.down_f32)(last);
      }
      border(op_.output, first, channels);
      if (op_.pooled) border(op_.pooled, first, channels);
    }
  }

  // What a gate reads: a vector, or the averages whose row sums convolutions left.
  void input_vector(const View& v, float* to) const {
    std::memcpy(to, vector(v), v.channels * sizeof(float));
    for (size_t o = 0; o < f_.program.ops.size(); o++) {
      const Op& op = f_.program.ops[o];
      if (!op.mean || op.mean.buffer != v.buffer) continue;
      const Place& map = place(op.output);
      const auto* sums = reinterpret_cast<const float*>(f_.arena + f_.shape.sums[o]);
      const double pixels = static_cast<double>(map.rows) * static_cast<double>(map.columns);
      for (int c = 0; c < op.mean.channels; c++) {
        const int place = op.mean.offset + c - v.offset;
        if (place < 0 || place >= v.channels) continue;
        double sum = 0;
        for (int64_t y = 0; y < map.rows; y++) sum += sums[y * op.output.channels + c];
        to[place] = static_cast<float>(sum / pixels);
      }
    }
  }

  void gate() {
    float* in = reinterpret_cast<float*>(scratch_);
    input_vector(op_.inputs[0], in);
    int width = op_.inputs[0].channels;
    for (size_t i = 0; i < op_.layers.size(); i++) {
      const int outputs = static_cast<int>(f_.program.weights[op_.layers[i].weight].shape[0]);
      float* out = i + 1 == op_.layers.size() ? vector(op_.output) : in + width;
      const GateLayer layer{reinterpret_cast<const float*>(packed_.layers[i].data()),
                            reinterpret_cast<const float*>(packed_.biases[i].data()), in, out, width, outputs,
                            op_.layers[i].act};
      f_.kernels.gate(layer);
      in = out;
      width = outputs;
    }
  }

  void prologue() {
    const Place& in = place(op_.inputs[0]);
    const Place& out = place(op_.output);
    PrologueRow row{};
    row.in_step = in.channels;
    row.out_step = out.channels;
    row.pixels = out.columns;
    row.channels = op_.output.channels;
    if (op_.scale) row.scale = vector(op_.scale);
    const bool map = op_.add && store(op_.add) == Store::act;
    if (op_.add && !map) row.add = vector(op_.add);
    if (map) row.add_step = place(op_.add).channels;
    for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
      row.in = at(op_.inputs[0], y, 0);
      row.out = at(op_.output, y, 0);
      if (map) row.add_map = at(op_.add, y, 0);
      (bf16_ ? f_.kernels.prologue_bf16 : f_.kernels.prologue_f32)(row);
    }
    border(op_.output, 0, op_.output.channels);
  }

  void labels() {
    const Place& from = place(op_.inputs[0]);
    const Axis& rows = f_.shape.label_rows;
    const Axis& columns = f_.shape.label_columns;
    const int64_t height = f_.shape.key.label_height;
    const auto* best = reinterpret_cast<const uint8_t*>(f_.arena + f_.shape.best);
    LabelRow row{};
    row.step = from.channels;
    row.classes = static_cast<int>(from.channels);
    row.width = from.columns;
    row.columns = columns.first.data();
    row.column_weights = columns.weights.data();
    row.runs = columns.runs.data();
    row.taps = columns.taps.data();
    row.run_count = static_cast<int>(columns.runs.size()) - 1;
    row.uniform = reinterpret_cast<uint8_t*>(scratch_);
    row.pixels = f_.shape.key.label_width;
    for (int64_t y = t_.rows[0]; y < t_.rows[1]; y++) {
      const int taps = rows.weights[2 * height + y] != 0 ? 3 : 2;
      row.same_rows = y > t_.rows[0] && rows.first[y] == rows.first[y - 1] && taps == row.row_count;
      row.row_count = taps;
      for (int r = 0; r < taps; r++) {
        const int64_t source = std::min<int64_t>(rows.first[y] + r, from.rows - 1);
        row.rows[r] = logits(source);
        row.best[r] = best + source * from.columns;
        row.weights[r] = rows.weights[r * height + y];
      }
      row.out = static_cast<uint8_t*>(f_.output.data) + y * f_.output.stride[1];
      f_.kernels.labels(row);
    }
  }

  char* scratch_;
  Step both_[kMostSteps];
};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

void await(const std::atomic<int>& counter, int goal) {
  for (int spins = 0; counter.load(std::memory_order_acquire) < goal; spins++) {
    if (spins < 4096)
      pause();
    else
      std::this_thread::yield();  // whoever works on it may have been put aside
  }
}

}  // namespace

void work(Frame& frame, int thread) {
  char* scratch = frame.scratch + thread * frame.shape.scratch;
  const int count = static_cast<int>(frame.shape.tasks.size());
  for (;;) {
    const int i = frame.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= count) break;
    const Task& task = frame.shape.tasks[i];
    for (int w = task.waits[0]; w < task.waits[1]; w++) {
      const Wait& wait = frame.shape.waits[w];
      for (int c = wait.first; c < wait.last; c++) await(frame.counters[c], wait.goal);
    }
    if (frame.nanoseconds) {
      const auto start = std::chrono::steady_clock::now();
      Run(frame, task, scratch)();
      const auto spent = std::chrono::steady_clock::now() - start;
      frame.nanoseconds[task.op] += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
    } else {
      Run(frame, task, scratch)();
    }
    frame.counters[task.counter].fetch_add(1, std::memory_order_release);
  }
  if (frame.kernels.finish) frame.kernels.finish();
}

}  // namespace stdc
