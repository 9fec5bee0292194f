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

#include "bytes.h"
#include "pool.h"
#include "views.h"

namespace stdc {
namespace {

constexpr size_t kLayouts = 8;  // of the last sizes, that are kept
constexpr int64_t kMaxSide = 1 << 16;
constexpr int kMaxThreads = 256;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string text(const int64_t* shape) {
  std::ostringstream s;
  s << '[' << shape[0] << ", " << shape[1] << ", " << shape[2] << ", " << shape[3] << ']';
  return s.str();
}

const char* name_of(DType dtype) { return traits(dtype).name; }

void expect(const Tensor& t, const char* what, int64_t n, int64_t h, int64_t w, int64_t c) {
  const int64_t shape[4] = {n, h, w, c};
  if (!std::equal(shape, shape + 4, t.shape)) refuse(std::string(what) + ": shape " + text(t.shape) + ", not " + text(shape));
  if (!t.data) refuse(std::string(what) + ": no data");
  const int64_t bytes = traits(t.dtype).bytes;
  if (reinterpret_cast<uintptr_t>(t.data) % bytes)
    refuse(std::string(what) + ": address is no multiple of the " + std::to_string(bytes) + " bytes of " +
           name_of(t.dtype));
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
  Impl(const void* plan, size_t bytes, const std::string& isa, bool small)
      : set(kernel_set(best_isa(isa))), program(parse(plan, bytes, set)), nanoseconds(program.ops.size()) {
    program.small = small;
    for (const auto& op : program.ops) weights += op->pack(program, set);
    for (Weight& w : program.weights) w.data = nullptr;  // the caller's; they are packed
  }

  const Layout& layout(const Key& key) {
    for (auto it = layouts.begin(); it != layouts.end(); ++it)
      if (it->key == key) {
        layouts.splice(layouts.begin(), layouts, it);
        return layouts.front();
      }
    layouts.push_front(lay_out(program, set, key));
    if (layouts.size() > kLayouts) layouts.pop_back();
    return layouts.front();
  }

  // The memory of a size. Asked for in every call: the one before may have failed.
  void provide(const Layout& made) {
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

  const KernelSet& set;
  Program program;
  size_t weights = 0;
  std::list<Layout> layouts;
  Bytes arena;
  std::unique_ptr<std::atomic<int>[]> counters;
  int counter_count = 0;
  std::vector<std::atomic<int64_t>> nanoseconds;
  int64_t images = 0;
  bool poisoned = false, profiling = false;
  mutable Mutex mutex;
};

Engine::Engine(const void* plan, size_t bytes, const std::string& isa, bool small) {
  if (!plan) refuse("no plan");
  if (reinterpret_cast<uintptr_t>(plan) % alignof(float)) {
    Bytes aligned(bytes);
    std::memcpy(aligned.data(), plan, bytes);
    impl_.reset(new Impl(aligned.data(), bytes, isa, small));
  } else {
    impl_.reset(new Impl(plan, bytes, isa, small));
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
      if (!e.set.copy[in.dtype][p.dtype]) refuse(std::string("expected a float input, got ") + name_of(in.dtype));
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
    if (p.buffers[out].store == Store::image && !e.set.copy[p.dtype][output.dtype])
      refuse(std::string("expected a float output, got ") + name_of(output.dtype));
  }

  std::lock_guard<Mutex> lock(e.mutex);
  const Layout& layout = e.layout(key);
  e.provide(layout);
  for (int64_t n = 0; n < batch; n++) {
    Tensor image[kMostInputs];
    for (int i = 0; i < count; i++) {
      Tensor& t = image[i] = inputs[i];
      t.data = static_cast<char*>(t.data) + n * t.stride[0] * traits(t.dtype).bytes;
      t.shape[0] = 1;
    }
    Tensor result = output;
    result.data = static_cast<char*>(output.data) + n * output.stride[0] * traits(output.dtype).bytes;
    result.shape[0] = 1;
    if (e.poisoned) std::memset(e.arena.data(), 0xff, e.arena.size());
    for (int c = 0; c < layout.counters; c++) e.counters[c].store(0, std::memory_order_relaxed);
    Frame frame{layout, e.arena.data(), e.arena.data() + layout.arena, image, result,
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

std::vector<OpForm> Engine::forms() const {
  std::vector<OpForm> found;
  for (const auto& op : impl_->program.ops) found.push_back({op->name, op->kind, op->form()});
  return found;
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
  std::lock_guard<Mutex> lock(impl_->mutex);
  std::vector<OpProfile> found;
  for (size_t o = 0; o < impl_->program.ops.size(); o++) {
    const Op& op = *impl_->program.ops[o];
    found.push_back({op.name, op.kind, impl_->nanoseconds[o] * 1e-9, impl_->images});
  }
  return found;
}

}  // namespace stdc
