// The threads of the engine: one pool for the process, asleep but for a moment after each frame.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "pool.h"

namespace stdc {
namespace {

// For how long a thread that has nothing to do looks out for the next frame before it sleeps.
constexpr std::chrono::microseconds kSpin{50};

class Pool {
 public:
  void run(int threads, void (*fn)(void*, int), void* argument) {
    std::unique_lock<std::mutex> in_use(use_, std::try_to_lock);
    if (!in_use || threads < 2) return fn(argument, 0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < threads - 1) start();
      fn_ = fn;
      argument_ = argument;
      wanted_ = threads - 1;
      joined_ = 0;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    fn(argument, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // who comes late finds nothing
    done_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void start() {
    std::thread([this] { loop(); }).detach();
    workers_++;
  }

  void loop() {
    int64_t seen = 0;
    for (;;) {
      const auto end = std::chrono::steady_clock::now() + kSpin;
      while (generation_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < end) {
      }
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (joined_ >= wanted_) continue;
      const int id = ++joined_;
      running_++;
      const auto fn = fn_;
      void* const argument = argument_;
      lock.unlock();
      fn(argument, id);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex use_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int64_t> generation_{0};
  void (*fn_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  int wanted_ = 0, joined_ = 0, running_ = 0, workers_ = 0;
};

// Never destroyed: its threads may still look at it when the process ends. A child after fork() has none of the
// threads, and gets a pool of its own.
std::atomic<Pool*> pool{nullptr};

Pool& instance() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p) return *p;
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  auto* fresh = new Pool;
  if (pool.compare_exchange_strong(p, fresh)) return *fresh;
  delete fresh;
  return *p;
}

}  // namespace

void parallel(int threads, void (*fn)(void*, int), void* argument) { instance().run(threads, fn, argument); }

}  // namespace stdc
