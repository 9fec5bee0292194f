// The loop over tasks: each thread takes the next one, waits for what it reads, and runs its op.
#include <chrono>
#include <thread>

#include "views.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stdc {
namespace {

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
  const Layout& layout = frame.layout;
  char* scratch = frame.scratch + thread * layout.scratch;
  const int count = static_cast<int>(layout.tasks.size());
  for (;;) {
    const int i = frame.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= count) break;
    const Task& task = layout.tasks[i];
    for (int w = task.waits[0]; w < task.waits[1]; w++) {
      const Wait& wait = layout.waits[w];
      for (int c = wait.first; c < wait.last; c++) await(frame.counters[c], wait.goal);
    }
    const Op& op = *layout.program.ops[task.op];
    const Views views(frame, task, scratch);
    const auto execute = [&] { task.prepares ? op.prepare(views) : op.run(views); };
    if (frame.nanoseconds) {
      const auto start = std::chrono::steady_clock::now();
      execute();
      const auto spent = std::chrono::steady_clock::now() - start;
      frame.nanoseconds[task.op] += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
    } else {
      execute();
    }
    frame.counters[task.counter].fetch_add(1, std::memory_order_release);
  }
  if (layout.kernels.finish) layout.kernels.finish();
}

}  // namespace stdc
