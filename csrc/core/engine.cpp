// The engine's public face: checks what it is given, keeps the layouts of recent sizes, runs a batch image by image.
#include "engine.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>

#include "state.h"

namespace stdc {
namespace {

constexpr size_t kShapes = 8;  // sizes whose layout is kept
constexpr int64_t kMaxSide = 1 << 16;
constexpr int kMaxThreads = 256;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string text(const int64_t* shape) {
  std::ostringstream s;
  s << '[' << shape[0] << ", " << shape[1] << ", " << shape[2] << ", " << shape[3] << ']';
  return s.str();
}

const char* name_of(DType dtype) {
  return dtype == DType::f32 ? "float32" : dtype == DType::bf16 ? "bfloat16" : "uint8";
}

void expect(const Tensor& t, const char* what, int64_t n, int64_t h, int64_t w, int64_t c) {
  const int64_t shape[4] = {n, h, w, c};
  if (!std::equal(shape, shape + 4, t.shape)) refuse(std::string(what) + ": shape " + text(t.shape) + ", not " + text(shape));
  if (!t.data) refuse(std::string(what) + ": no data");
  if (reinterpret_cast<uintptr_t>(t.data) % item(t.dtype))
    refuse(std::string(what) + ": address is no multiple of the " + std::to_string(item(t.dtype)) + " bytes of " + name_of(t.dtype));
}

// A mutex that a child process finds free: who held it is gone.
class Mutex {
 public:
  void lock() {
    pid_t owner = pid_.load();
    if (owner != getpid()) {
      if (owner != kChanging && pid_.compare_exchange_strong(owner, kChanging)) {
        new (&mutex_) std::mutex;
        pid_ = getpid();
      }
      while (pid_ != getpid()) {
      }
    }
    mutex_.lock();
  }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr pid_t kChanging = -1;
  std::mutex mutex_;
  std::atomic<pid_t> pid_{getpid()};
};

}  // namespace

struct Engine::Impl {
  Impl(const void* plan, size_t bytes, const std::string& isa)
      : program(parse(plan, bytes)), set(kernels(best_isa(isa))), packed(pack(program, set)),
        nanoseconds(program.ops.size()) {
    for (Weight& w : program.weights) w.data = nullptr;  // the caller's; they are packed
    for (const Packed& p : packed) {
      weights += p.weights.size() + p.bias.size() + p.depthwise.size();
      for (const Bytes& b : p.layers) weights += b.size();
      for (const Bytes& b : p.biases) weights += b.size();
    }
  }

  const Shape& shape(const Key& key) {
    for (auto it = shapes.begin(); it != shapes.end(); ++it)
      if (it->key == key) {
        shapes.splice(shapes.begin(), shapes, it);
        return shapes.front();
      }
    shapes.push_front(lay_out(program, set, key));
    if (shapes.size() > kShapes) shapes.pop_back();
    return shapes.front();
  }

  // What a size needs beyond its layout. Asked for in every call: without memory, the one before may have failed.
  void provide(const Shape& made) {
    for (size_t o = 0; o < packed.size(); o++)
      if (made.tiles[o] && !packed[o].winograd.size()) {
        packed[o].winograd = winograd_weights(packed[o], program, set, program.ops[o]);
        weights += packed[o].winograd.size();
      }
    const size_t needed = made.arena + made.scratch * made.key.threads;
    if (needed > arena.size()) {
      arena = Bytes();
      arena = Bytes(needed);
    }
    if (made.counters > counter_count) {
      counters.reset(new std::atomic<int>[made.counters]);
      counter_count = made.counters;
    }
  }

  Program program;
  const Kernels& set;
  std::vector<Packed> packed;
  size_t weights = 0;
  std::list<Shape> shapes;
  Bytes arena;
  std::unique_ptr<std::atomic<int>[]> counters;
  int counter_count = 0;
  std::vector<std::atomic<int64_t>> nanoseconds;
  int64_t images = 0;
  bool poisoned = false, profiling = false;
  mutable Mutex mutex;
};

Engine::Engine(const void* plan, size_t bytes, const std::string& isa) {
  if (!plan) refuse("no plan");
  if (reinterpret_cast<uintptr_t>(plan) % alignof(float)) {
    Bytes aligned(bytes);
    std::memcpy(aligned.data(), plan, bytes);
    impl_.reset(new Impl(aligned.data(), bytes, isa));
  } else {
    impl_.reset(new Impl(plan, bytes, isa));
  }
}
Engine::~Engine() = default;

void Engine::run(const Tensor* inputs, int count, const Tensor& output, int64_t height, int64_t width, int threads,
                 bool exact) {
  Impl& e = *impl_;
  const Program& p = e.program;
  if (count != static_cast<int>(p.inputs.size()))
    refuse(p.name + " has " + std::to_string(p.inputs.size()) + " inputs, got " + std::to_string(count));
  if (threads < 1 || threads > kMaxThreads) refuse(std::to_string(threads) + " threads");
  if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide)
    refuse("size " + std::to_string(height) + " x " + std::to_string(width));

  Key key{height, width, height, width, 0, 0, threads, exact};
  const int64_t batch = inputs[0].shape[0];
  for (int i = 0; i < count; i++) {
    const Buffer& buffer = p.buffers[p.inputs[i]];
    const Tensor& in = inputs[i];
    if (buffer.store == Store::frame) {
      if (in.dtype != DType::u8) refuse(std::string("expected uint8 frames, got ") + name_of(in.dtype));
      key.frame_height = in.shape[1], key.frame_width = in.shape[2];
      if (in.shape[1] < 1 || in.shape[2] < 1 || in.shape[1] > kMaxSide || in.shape[2] > kMaxSide)
        refuse("frames " + text(in.shape));
      expect(in, "frames", batch, in.shape[1], in.shape[2], 3);
      if (in.stride[3] != 1 || in.stride[2] != 3) refuse("frames: pixels of strides " + text(in.stride));
    } else {
      if (in.dtype == DType::u8) refuse("expected a float input, got uint8");
      expect(in, "input", batch, p.rows(p.inputs[i], height), p.columns(p.inputs[i], width), buffer.channels);
    }
  }
  const int out = p.output.buffer;
  if (output.dtype == DType::u8) {
    if (p.buffers[out].store != Store::logits) refuse(p.name + " gives a map, not labels");
    if (p.buffers[out].channels > 256) refuse("more than 256 classes do not fit into uint8");
    key.label_height = output.shape[1], key.label_width = output.shape[2];
    if (output.shape[1] < 1 || output.shape[2] < 1 || output.shape[1] > kMaxSide || output.shape[2] > kMaxSide)
      refuse("labels " + text(output.shape));
    expect(output, "labels", batch, output.shape[1], output.shape[2], 1);
    if (output.stride[2] != 1) refuse("labels: strides " + text(output.stride));
  } else {
    const int64_t rows = p.rows(out, height), columns = p.columns(out, width), channels = p.buffers[out].channels;
    expect(output, "output", batch, rows, columns, channels);
    if (p.buffers[out].store == Store::logits &&
        (output.dtype != DType::f32 || output.stride[3] != 1 || output.stride[2] != channels ||
         output.stride[1] != columns * channels))
      refuse(std::string("logits are dense float32 [N, h, w, C], not ") + name_of(output.dtype) + " of strides " +
             text(output.stride));
  }

  std::lock_guard<Mutex> lock(e.mutex);
  const Shape& shape = e.shape(key);
  e.provide(shape);
  for (int64_t n = 0; n < batch; n++) {
    Tensor image[kMostInputs];
    for (int i = 0; i < count; i++) {
      Tensor& t = image[i] = inputs[i];
      t.data = static_cast<char*>(t.data) + n * t.stride[0] * static_cast<int64_t>(item(t.dtype));
      t.shape[0] = 1;
    }
    Tensor result = output;
    result.data = static_cast<char*>(output.data) + n * output.stride[0] * static_cast<int64_t>(item(output.dtype));
    result.shape[0] = 1;
    if (e.poisoned) std::memset(e.arena.data(), 0xff, e.arena.size());
    for (int c = 0; c < shape.counters; c++) e.counters[c].store(0, std::memory_order_relaxed);
    Frame frame{p, e.set, e.packed, shape, e.arena.data(), e.arena.data() + shape.arena, image, result,
                e.counters.get(), {0}, e.profiling ? e.nanoseconds.data() : nullptr};
    parallel(threads, [](void* f, int thread) { work(*static_cast<Frame*>(f), thread); }, &frame);
    e.images += e.profiling;
  }
}

const char* Engine::isa() const { return impl_->set.name; }
const std::string& Engine::name() const { return impl_->program.name; }

Memory Engine::memory() const {
  std::lock_guard<Mutex> lock(impl_->mutex);
  return {impl_->weights, impl_->arena.size()};
}

void Engine::poison(bool on) {
  std::lock_guard<Mutex> lock(impl_->mutex);
  impl_->poisoned = on;
}

void Engine::profile(bool on) {
  std::lock_guard<Mutex> lock(impl_->mutex);
  impl_->profiling = on;
  if (!on) return;
  for (auto& n : impl_->nanoseconds) n = 0;
  impl_->images = 0;
}

std::vector<OpProfile> Engine::profiled() const {
  static const char* kinds[] = {"frame", "import", "export", "conv", "down", "gate", "prologue", "upsample"};
  std::lock_guard<Mutex> lock(impl_->mutex);
  std::vector<OpProfile> found;
  for (size_t o = 0; o < impl_->program.ops.size(); o++) {
    const Op& op = impl_->program.ops[o];
    found.push_back({op.name, kinds[static_cast<int>(op.kind)], impl_->nanoseconds[o] * 1e-9, impl_->images});
  }
  return found;
}

}  // namespace stdc
