// Runs saved plans on every instruction set, to be built with sanitizers; tests/sanitize.py writes what it reads.
//
//   sanitize FOLDER all|ends [damaged]
//
// ends: the first and the last instruction set only, dense layouts only. damaged: feed damaged plans to the engine,
// too. Buffers are exactly as large as the engine may touch, the arena is full of NaN, and whatever the layout, the
// threads or what runs beside it, an instruction set gives the same bits.
#include <sanitizer/common_interface_defs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "engine.h"

namespace {

using stdc::DType;
using stdc::Engine;
using stdc::Tensor;

constexpr int kSeconds = 120;  // after which a run is taken to hang
constexpr int kUntouched = 0xab;

char current[256];  // what is being done, for the report

// For where no lock may be taken and nothing allocated.
void say_current() {
  const ssize_t written = write(2, current, std::strlen(current)) + write(2, "\n", 1);
  (void)written;
}
void begin(const std::string& what) {
  std::snprintf(current, sizeof(current), "in %s", what.c_str());
  alarm(kSeconds);
}

size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : dtype == DType::bf16 ? 2 : 1; }

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  if (!file || !(bytes << file.rdbuf())) throw std::runtime_error(path + ": can not be read");
  const std::string s = bytes.str();
  return {s.begin(), s.end()};
}

// A dense array [N, H, W, C].
struct Array {
  DType dtype;
  int64_t shape[4];
  std::vector<char> data;
};

struct Case {
  std::string name, plan;
  int64_t height, width;
  bool exact, whole;  // whole: a network, which takes long
  std::vector<Array> inputs;
  Array expected;
  double limit;  // relative error, or share of other labels
};

enum class Layout { dense, padded, planes };

// Memory of the very size that a layout spans; nothing beside it, before or after, is the engine's business.
class Memory {
 public:
  Memory(const Array& a, Layout layout, bool logits = false) : array_(a), tensor_{nullptr, a.dtype, {}, {}} {
    const int64_t h = a.shape[1], w = a.shape[2], c = a.shape[3];
    const bool bytes = a.dtype == DType::u8;
    if (layout == Layout::planes && (bytes || logits)) layout = Layout::padded;
    int64_t stride[4] = {h * w * c, w * c, c, 1};
    if (layout == Layout::padded) {
      if (!logits) stride[1] += 5;
      if (!logits && !bytes) stride[2] += 1, stride[1] += w;
      stride[0] = h * stride[1] + 7;
    } else if (layout == Layout::planes) {
      stride[0] = c * h * w, stride[1] = w, stride[2] = 1, stride[3] = h * w;
    }
    int64_t last = 0;
    for (int i = 0; i < 4; i++) last += (a.shape[i] - 1) * stride[i];
    size_ = (last + 1) * size_of(a.dtype);
    tensor_.data = std::malloc(size_);
    std::memset(tensor_.data, kUntouched, size_);
    std::copy(a.shape, a.shape + 4, tensor_.shape);
    std::copy(stride, stride + 4, tensor_.stride);
  }
  ~Memory() { std::free(tensor_.data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  const Tensor& tensor() const { return tensor_; }

  void fill() {
    each([](char* here, char* dense, size_t size) { std::memcpy(here, dense, size); });
  }
  // What was written, densely; throws if anything between was written, too.
  std::vector<char> take() {
    each([](char* here, char* dense, size_t size) {
      std::memcpy(dense, here, size);
      std::memset(here, kUntouched, size);
    });
    const auto* p = static_cast<unsigned char*>(tensor_.data);
    if (std::any_of(p, p + size_, [](unsigned char b) { return b != kUntouched; }))
      throw std::runtime_error("wrote between the elements of its output");
    return array_.data;
  }

 private:
  template <class F>
  void each(F f) {
    const size_t size = size_of(array_.dtype);
    char* dense = array_.data.data();
    const int64_t* s = array_.shape;
    for (int64_t n = 0; n < s[0]; n++)
      for (int64_t y = 0; y < s[1]; y++)
        for (int64_t x = 0; x < s[2]; x++)
          for (int64_t c = 0; c < s[3]; c++, dense += size) {
            const int64_t* t = tensor_.stride;
            f(static_cast<char*>(tensor_.data) + (n * t[0] + y * t[1] + x * t[2] + c * t[3]) * size, dense, size);
          }
  }

  Array array_;
  Tensor tensor_;
  size_t size_ = 0;
};

std::vector<char> run(Engine& engine, const Case& c, int threads, Layout layout) {
  std::vector<std::unique_ptr<Memory>> memories;
  std::vector<Tensor> inputs;
  for (const Array& a : c.inputs) {
    memories.emplace_back(new Memory(a, layout));
    memories.back()->fill();
    inputs.push_back(memories.back()->tensor());
  }
  const bool network = c.whole || c.name.find("SegHead") != std::string::npos;
  Memory output(c.expected, layout, network && c.expected.dtype == DType::f32);
  engine.run(inputs.data(), static_cast<int>(inputs.size()), output.tensor(), c.height, c.width, threads, c.exact);
  return output.take();
}

// The plan's bytes are gone when the engine runs.
std::unique_ptr<Engine> load(const std::vector<char>& plan, const std::string& isa) {
  char* bytes = static_cast<char*>(std::malloc(plan.size()));
  std::copy(plan.begin(), plan.end(), bytes);
  std::unique_ptr<char, void (*)(void*)> owner(bytes, std::free);
  std::unique_ptr<Engine> engine(new Engine(bytes, plan.size(), isa));
  engine->poison(true);
  return engine;
}

double value(const char* data, size_t i, DType dtype) {
  if (dtype == DType::u8) return static_cast<unsigned char>(data[i]);
  uint32_t bits = 0;
  if (dtype == DType::f32) {
    std::memcpy(&bits, data + 4 * i, 4);
  } else {
    uint16_t half;
    std::memcpy(&half, data + 2 * i, 2);
    bits = static_cast<uint32_t>(half) << 16;
  }
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Share of other labels, or relative error; NaN if there is one.
double distance(const std::vector<char>& got, const Array& expected) {
  const size_t count = got.size() / size_of(expected.dtype);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; i++) {
    const double a = value(got.data(), i, expected.dtype), b = value(expected.data.data(), i, expected.dtype);
    difference += expected.dtype == DType::u8 ? a != b : (a - b) * (a - b);
    norm += expected.dtype == DType::u8 ? 1 : b * b;
  }
  return expected.dtype == DType::u8 ? difference / norm : std::sqrt(difference / norm);
}

class Suite {
 public:
  Suite(const std::string& folder, bool layouts) : folder_(folder), layouts_(layouts) {
    std::ifstream file(folder + "/cases.txt");
    for (std::string line; std::getline(file, line);) {
      std::istringstream in(line);
      Case c;
      std::string dtype;
      size_t inputs = 0;
      in >> c.name >> c.plan >> c.height >> c.width >> c.exact >> c.whole >> c.limit >> inputs;
      for (size_t i = 0; i < inputs; i++) c.inputs.push_back(array(in));
      c.expected = array(in);
      if (!in) throw std::runtime_error("cases.txt: " + line);
      if (!plans_.count(c.plan)) plans_[c.plan] = read(folder + "/" + c.plan);
      cases_.push_back(std::move(c));
    }
    if (cases_.empty()) throw std::runtime_error(folder + "/cases.txt: no cases");
  }

  // Returns how many things went wrong.
  int run_all(const std::string& isa) {
    isa_ = isa;
    runs_ = failures_ = 0;
    worst_ = 0;
    results_.clear();
    // The emulation of tiles has no float32 of its own, and takes long.
    chosen_.clear();
    for (const Case& c : cases_)
      if (isa != "amx_emulated" || !c.whole || c.name.find("bfloat16") == 0) chosen_.push_back(&c);
    for (const Case* c : chosen_) guarded(c->name, [&] { one(*c); });
    if (!failures_) guarded("several engines", [&] { several(); });
    if (!failures_) guarded("one engine", [&] { shared(); });
    std::printf("%-13s %zu cases, %d runs, %d failures; nearest to its limit: %s, %.2f of it\n", isa.c_str(),
                chosen_.size(), runs_.load(), failures_.load(), nearest_.c_str(), worst_);
    std::fflush(stdout);
    return failures_;
  }

  // Plans with one word of the header changed, or cut: the engine refuses them, or runs them within its memory.
  void run_damaged(const std::string& isa) {
    isa_ = isa;
    int refused = 0, accepted = 0;
    std::string last;
    for (const Case& c : cases_) {
      if (c.plan == last || plans_[c.plan].size() > 100000) continue;
      last = c.plan;
      const std::vector<char>& bytes = plans_[c.plan];
      const std::string plan(bytes.begin(), bytes.end());
      const size_t header = plan.find("\ndata\n") + 6;
      const auto attempt = [&](const std::string& changed, const std::string& how) {
        begin(isa_ + ", " + c.name + ", damaged: " + how);
        try {
          const auto engine = load({changed.begin(), changed.end()}, isa_);
          run(*engine, c, 2, Layout::dense);
          accepted++;
        } catch (const std::exception&) {
          refused++;
        }
      };
      for (size_t cut = 0; cut < header; cut += 7) attempt(plan.substr(0, cut), "cut at " + std::to_string(cut));
      for (size_t cut = header; cut < plan.size(); cut += plan.size() / 5 + 1)
        attempt(plan.substr(0, cut), "cut at " + std::to_string(cut));
      for (size_t at = 0; at < header;) {
        const size_t end = plan.find_first_of(" \n", at);
        const std::string word = plan.substr(at, end - at);
        for (const std::string& other : others(word)) {
          std::string changed = plan.substr(0, at) + other + plan.substr(end);
          // The data's place stays.
          const size_t data = (header + 63) / 64 * 64, moved = (header + other.size() - word.size() + 63) / 64 * 64;
          if (moved > data) changed.insert(header + other.size() - word.size(), moved - data, '\0');
          attempt(changed, word + " -> " + other + " at " + std::to_string(at));
        }
        at = end + 1;
      }
    }
    std::printf("%-13s damaged plans: %d refused, %d run\n", isa.c_str(), refused, accepted);
    std::fflush(stdout);
  }

 private:
  Array array(std::istringstream& in) {
    Array a{};
    std::string file, dtype;
    in >> file >> dtype;
    for (int64_t& n : a.shape) in >> n;
    if (!in) throw std::runtime_error("cases.txt: " + in.str());
    a.dtype = dtype == "float32" ? DType::f32 : dtype == "bfloat16" ? DType::bf16 : DType::u8;
    a.data = read(folder_ + "/" + file);
    const int64_t* s = a.shape;
    if (a.data.size() != s[0] * s[1] * s[2] * s[3] * size_of(a.dtype)) throw std::runtime_error(file + ": size");
    return a;
  }

  static std::vector<std::string> others(const std::string& word) {
    static const char* some[] = {"0", "1", "2", "3", "4", "-1", "65536", "65537", "99999999999", "+", "-"};
    std::vector<std::string> found(std::begin(some), std::end(some));
    char* end = nullptr;
    const long n = std::strtol(word.c_str(), &end, 10);
    if (!*end)
      for (const long m : {n + 1, n - 1, 2 * n}) found.push_back(std::to_string(m));
    if (*end)
      for (const char* w : {"act", "image", "vector", "logits", "labels", "frame", "conv", "import", "upsample"})
        found.push_back(w);
    return found;
  }

  template <class F>
  void guarded(const std::string& what, F f) {
    begin(isa_ + ", " + what);
    try {
      f();
    } catch (const std::exception& error) {
      fail(what, error.what());
    }
  }
  void fail(const std::string& what, const std::string& why) {
    std::fprintf(stderr, "%s, %s: %s\n", isa_.c_str(), what.c_str(), why.c_str());
    failures_++;
  }

  // A new engine, whose arena is as large as this case needs.
  void one(const Case& c) {
    std::vector<std::pair<int, Layout>> ways;
    if (c.whole) {
      ways = {{1, Layout::dense}, {3, Layout::padded}};
    } else {
      for (const int threads : {1, 2, 5})
        for (const Layout layout : {Layout::dense, Layout::padded, Layout::planes})
          if (layouts_ || layout == Layout::dense) ways.push_back({threads, layout});
    }
    const auto engine = load(plans_[c.plan], isa_);
    for (const auto& [threads, layout] : ways) {
      const std::vector<char> got = run(*engine, c, threads, layout);
      runs_++;
      if (!results_.count(c.name)) {
        const double error = distance(got, c.expected);
        if (!(error <= c.limit))
          return fail(c.name, std::to_string(error) + " from what was expected, " + std::to_string(c.limit) +
                                  " is allowed");
        if (error / c.limit > worst_) worst_ = error / c.limit, nearest_ = c.name;
        results_[c.name] = got;
      } else if (got != results_[c.name]) {
        return fail(c.name, "other bits with " + std::to_string(threads) + " threads, layout " +
                                std::to_string(static_cast<int>(layout)));
      }
    }
  }

  void again(Engine& engine, const Case& c, int threads) {
    alarm(kSeconds);
    try {
      if (run(engine, c, threads, Layout::dense) != results_.at(c.name)) fail(c.name, "other bits beside other runs");
    } catch (const std::exception& error) {
      fail(c.name, error.what());
    }
    runs_++;
  }

  // Engines of one thread each, and of several that share the pool.
  void several() {
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 3; t++)
      threads.emplace_back([this, t] {
        for (size_t i = t; i < chosen_.size() + t; i++) {
          const Case& c = *chosen_[i % chosen_.size()];
          if (c.whole && i % 3 != t) continue;
          const auto engine = load(plans_.at(c.plan), isa_);
          again(*engine, c, 1 + static_cast<int>((i + t) % 3));
        }
      });
    for (std::thread& t : threads) t.join();
  }

  // One engine of each plan from three threads: more sizes than it keeps layouts of, in an arena that grows.
  void shared() {
    std::map<std::string, std::vector<const Case*>> by_plan;
    for (const Case* c : chosen_) by_plan[c->plan].push_back(c);
    for (const auto& [plan, cases] : by_plan) {
      begin(isa_ + ", one engine of " + plan);
      const auto engine = load(plans_[plan], isa_);
      std::atomic<int> working{2};
      std::vector<std::thread> threads;
      for (size_t t = 0; t < 2; t++)
        threads.emplace_back([&, t, &cases = cases] {
          for (size_t i = 0; i < cases.size(); i++)
            again(*engine, *cases[t ? i : cases.size() - 1 - i], 1 + static_cast<int>((i + t) % 3));
          working--;
        });
      for (int i = 0; working; i++) {
        engine->profile(i % 2);
        engine->memory();
        engine->profiled();
        std::this_thread::yield();
      }
      for (std::thread& t : threads) t.join();
    }
  }

  std::string folder_, isa_, nearest_;
  bool layouts_;
  std::vector<Case> cases_;
  std::vector<const Case*> chosen_;  // for this instruction set
  std::map<std::string, std::vector<char>> plans_, results_;
  std::atomic<int> runs_{0}, failures_{0};
  double worst_ = 0;
};

// Pictures of videos: planes that end with their last sample, in memory of their own.
int run_pictures(const std::string& isa) {
  setenv("STDC_FAST_CPU_ISA", isa.c_str(), 1);
  int failures = 0;
  for (int kind = 0; kind < 24; kind++) {
    const int ratio = 1 + kind % 2, step = 1 + kind / 2 % 2;
    const bool wide = kind / 4 % 2, centred = kind >= 8;
    for (const int64_t width : {1, 33, 64, 131}) {
      const int64_t height = 3 + kind % 3, size = wide ? 2 : 1;
      const int64_t columns = (width + ratio - 1) / ratio, rows = (height + ratio - 1) / ratio;
      begin("a picture of width " + std::to_string(width) + ", kind " + std::to_string(kind) + ", " + isa);
      const int64_t samples = (columns - 1) * step + 1, row = columns * step * size;
      // One level everywhere: grey of 128 in all three planes gives the same in each colour.
      const auto grey = [&](int64_t count) {
        std::vector<char> bytes(count * size);
        for (int64_t i = 0; i < count; i++) bytes[i * size] = static_cast<char>(128);
        return bytes;
      };
      const std::vector<char> y = grey(height * width), u = grey((rows - 1) * columns * step + samples), v = u;
      std::vector<float> table(2 * 2 * 2 * 4, 7.0f);
      std::vector<uint8_t> rgb(height * width * 3);
      stdc::Yuv p{y.data(), u.data(), v.data(), width * size, row, height, width, ratio, ratio, step, wide, centred,
                  1.0f, 1.5f, -0.3f, -0.5f, 1.8f, {-1.5f * 128, 0.8f * 128, -1.8f * 128}, nullptr, 2};
      if (kind >= 16) p.table = table.data();
      stdc::yuv_to_rgb(p, rgb.data());
      const int expected = p.table ? 7 : 128;
      for (const uint8_t level : rgb)
        if (std::abs(level - expected) > 1) failures++;
    }
  }
  if (failures) std::fprintf(stderr, "%s: %d levels of pictures are wrong\n", isa.c_str(), failures);
  unsetenv("STDC_FAST_CPU_ISA");
  return failures;
}

}  // namespace

int main(int count, char** arguments) {
  __sanitizer_set_death_callback(say_current);
  std::signal(SIGALRM, [](int) {
    say_current();
    const ssize_t written = write(2, "it hangs\n", 9);
    (void)written;
    _exit(1);
  });
  try {
    const std::vector<std::string> given(arguments + 1, arguments + count);
    if (given.size() < 2) throw std::runtime_error("usage: sanitize FOLDER all|ends [damaged]");
    Suite suite(given[0], given[1] == "all");
    std::vector<std::string> isas = stdc::isas();
    if (given[1] == "ends") isas = {isas.front(), isas.back()};
    int failures = 0;
    if (given.size() > 2) suite.run_damaged("portable");
    for (const std::string& isa : isas) failures += suite.run_all(isa) + run_pictures(isa);
    return failures ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sanitize: %s\n", error.what());
    return 1;
  }
}
