// The scheduler: clusters one by one, the threads of their blocks as fibers that switch to one another at rendezvous.
#include <stdio.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <stdexcept>

#include "state.h"

namespace stdc {
namespace gpu {
namespace emulator {

View view{};
Launch launch{};
std::vector<Fiber*> fibers;
std::vector<Warp> warps;
Statistics counts;
Block blocks[kMostBlocks];
uint32_t last_epoch = 0;

namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostShared = 227 << 10;

Options wanted;
Context launcher;
uint32_t ready_warps = 0;  // those with lanes that can run
uint64_t random_state = 1;

}  // namespace

uint32_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

namespace {

int lowest(uint32_t bits) { return __builtin_ctz(bits); }
int highest(uint32_t bits) { return 31 - __builtin_clz(bits); }
int any_of(uint32_t bits) {
  const uint32_t by = random_number() & 31;
  const uint32_t turned = bits >> by | bits << (-by & 31);
  return static_cast<int>((static_cast<uint32_t>(lowest(turned)) + by) & 31);
}

std::string hex(uint32_t bits) {
  char text[16];
  snprintf(text, sizeof(text), "%08x", bits);
  return text;
}

// Where the lanes of a warp are; `mixed` becomes true if that is not one place.
std::string describe_warp(int w, bool* mixed = nullptr) {
  std::string text;
  uint32_t left = 0xffffffffu;
  while (left) {
    const Fiber& first = *fibers[static_cast<size_t>(w * 32 + lowest(left))];
    uint32_t same = 0;
    for (int lane = 0; lane < 32; ++lane) {
      const Fiber& f = *fibers[static_cast<size_t>(w * 32 + lane)];
      if (f.state == first.state && (f.state == ThreadState::finished || f.site == first.site))
        same |= 1u << lane;
    }
    same &= left;
    left &= ~same;
    text += std::string(text.empty() ? "" : ", ") + hex(same) + " " + name_of(first.state);
    if (first.state != ThreadState::finished && first.state != ThreadState::running)
      text += " (" + describe(first.site) + ")";
    if (left && mixed) *mixed = true;
  }
  return text;
}

[[noreturn]] void fail_stuck() {
  bool mixed = false;
  std::string text;
  const int of_block = launch.threads / 32, count = of_block * launch.cluster;
  for (int w = 0; w < count;) {
    const std::string one = describe_warp(w, &mixed);
    int end = w + 1;
    while (end < count && end % of_block && describe_warp(end) == one) ++end;
    const int first = w % of_block, last = (end - 1) % of_block;
    text += end == w + 1 ? "\n  warp " + std::to_string(first)
                         : "\n  warps " + std::to_string(first) + "-" + std::to_string(last);
    if (launch.cluster > 1) text += " of block " + std::to_string(w / of_block) + " of the cluster";
    text += ": " + one;
    w = end;
  }
  fail((mixed ? "divergent: lanes of a warp are at different places, and none can go on"
              : "deadlock: no thread can go on") +
       text);
}

Fiber* next() {
  while (!ready_warps)
    if (!land_late()) fail_stuck();
  int w = 0, lane = 0;
  switch (launch.options.schedule) {
    case Schedule::round_robin: {
      const int warp = view.thread ? view.thread->warp : 0, from = view.thread ? view.thread->lane + 1 : 0;
      const uint32_t after = from < 32 ? warps[static_cast<size_t>(warp)].ready >> from : 0;
      if (after) {
        w = warp;
        lane = from + lowest(after);
      } else {
        const uint32_t later = warp < 31 ? ready_warps >> (warp + 1) : 0;
        w = later ? warp + 1 + lowest(later) : lowest(ready_warps);
        lane = lowest(warps[static_cast<size_t>(w)].ready);
      }
      break;
    }
    case Schedule::forward:
      w = lowest(ready_warps);
      lane = lowest(warps[static_cast<size_t>(w)].ready);
      break;
    case Schedule::backward:
      w = highest(ready_warps);
      lane = highest(warps[static_cast<size_t>(w)].ready);
      break;
    case Schedule::random:
      // NOTE: mostly the same warp, so that some come far ahead of others.
      w = view.thread ? view.thread->warp : 0;
      if (!(ready_warps >> w & 1) || random_number() % 64 == 0) w = any_of(ready_warps);
      lane = any_of(warps[static_cast<size_t>(w)].ready);
      break;
  }
  return fibers[static_cast<size_t>(w * 32 + lane)];
}

void enter(Fiber* fiber) {
  view.thread = fiber;
  const Block& block = blocks[fiber->rank];
  view.block = block.at;
  view.shared = block.shared;
  launch.block = block.number;
}

void go_to(Fiber* fiber) {
  if (fiber == view.thread) return;
  ++counts.switches;
  Context& from = view.thread ? self().context : launcher;
  enter(fiber);
  switch_to(from, fiber->context);
}

[[noreturn]] void go_home() {
  Context& from = self().context;
  view.thread = nullptr;
  switch_to(from, launcher, true);
  std::terminate();
}

void make_ready(int w, uint32_t lanes) {
  warps[static_cast<size_t>(w)].ready |= lanes;
  ready_warps |= 1u << w;
}
void stop(int w, int lane) {
  Warp& warp = warps[static_cast<size_t>(w)];
  warp.ready &= ~(1u << lane);
  if (!warp.ready) ready_warps &= ~(1u << w);
}

// All of a fiber's life.
void live() {
  arrived(launcher);
  try {
    launch.call(launch.callable);
  } catch (const std::exception& e) {
    fail(std::string("exception: ") + e.what());
  } catch (...) {
    fail("exception");
  }
  Fiber& me = self();
  end_copies(me);
  if (launch.dependent && !me.waited) fail("a thread ended without grid_wait in a dependent launch");
  me.state = ThreadState::finished;
  stop(me.warp, me.lane);
  if (--here().alive == 0) {
    end_barriers(me.rank);
    bool last = true;
    for (int rank = 0; rank < launch.cluster; ++rank) last &= !blocks[rank].alive;
    if (last) {
      end_groups();
      go_home();
    }
  }
  if (launch.cluster > 1) meet_cluster();
  Fiber* const to = next();
  ++counts.switches;
  enter(to);
  switch_to(me.context, to->context, true);
  std::terminate();
}

// The blocks from `first` on.
void run_cluster(int first, Index grid) {
  for (int rank = 0; rank < launch.cluster; ++rank) {
    Block& b = blocks[rank];
    const int i = first + rank;
    b = {{i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y}, i, b.shared, ++last_epoch, 0, launch.threads, false,
         false};
  }
  begin_shared_blocks();
  begin_groups();
  begin_barriers();
  ready_warps = 0;
  for (size_t i = 0; i < all_threads(); ++i) {
    Fiber& f = *fibers[i];
    f.rank = static_cast<int>(i) / launch.threads;
    f.own = static_cast<int>(i) % launch.threads;
    f.own_warp = f.own / 32;
    f.arrivals = f.waits = 0;
    f.waited = false;
    f.unfenced = 0;
    f.state = ThreadState::running;
    f.copies.clear();
    f.groups.clear();
    f.copied = 0;
    prepare(f.context, live);
  }
  for (int w = 0; w < static_cast<int>(all_threads() / 32); ++w) {
    Warp& warp = warps[static_cast<size_t>(w)];
    warp.ready = warp.arrived = warp.step = 0;
    warp.written = true;
    make_ready(w, 0xffffffffu);
  }
  view.thread = nullptr;
  go_to(next());
  counts.blocks += launch.cluster;
}

void make_fibers(int threads) {
  while (static_cast<int>(fibers.size()) < threads) {
    Fiber* const f = new Fiber();  // kept, as its stack is
    f->id = static_cast<int>(fibers.size());
    f->lane = f->id % 32;
    f->warp = f->id / 32;
    allocate(f->context, fibers.size());
    fibers.push_back(f);
  }
  if (warps.size() < static_cast<size_t>(threads / 32)) warps.resize(static_cast<size_t>(threads / 32));
}

}  // namespace

Options& options() { return wanted; }
void set_schedule(Schedule schedule, uint64_t seed) {
  wanted.schedule = schedule;
  wanted.seed = seed;
}
const Statistics& statistics() { return counts; }
void reset_statistics() { counts = Statistics(); }

const char* name_of(ThreadState state) {
  static const char* const names[] = {"running",  "block_sync", "warp_sync", "shuffle_xor",
                                      "ldmatrix", "mma",        "mma_levels", "mbarrier_wait",
                                      "cluster_wait",
                                      "wgmma",    "wgmma_fence", "wgmma_commit", "wgmma_wait",
                                      "finished"};
  return names[static_cast<int>(state)];
}

std::string describe(Site site) {
  const char* const slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string describe_thread(int id) {
  const int own = id % launch.threads;
  return "thread " + std::to_string(own) + " (warp " + std::to_string(own / 32) + ", lane " + std::to_string(own % 32) +
         (launch.cluster > 1 ? ", block " + std::to_string(id / launch.threads) + " of the cluster)" : ")");
}

void fail(const std::string& message) {
  launch.error = std::string("kernel ") + launch.name + ", block " + std::to_string(view.block.x) + "x" +
                 std::to_string(view.block.y) + "x" + std::to_string(view.block.z) + ": " + message;
  go_home();
}

void fail(const std::string& message, Site site) {
  fail(describe_thread(view.thread->id) + " at " + describe(site) + ": " + message);
}

bool arrive(ThreadState state, Site site, int mask) {
  Fiber& me = self();
  Warp& warp = warps[static_cast<size_t>(me.warp)];
  me.state = state;
  me.site = site;
  if (!warp.arrived) {
    warp.state = state;
    warp.site = site;
    warp.mask = mask;
    warp.mixed = false;
  } else if (warp.state != state || !(warp.site == site) || warp.mask != mask) {
    warp.mixed = true;
  }
  warp.arrived |= 1u << me.lane;
  if (warp.arrived == 0xffffffffu) {
    if (warp.mixed)
      fail("divergent: lanes of warp " + std::to_string(me.warp) + " are at different collectives: " +
           describe_warp(me.warp) + (state == ThreadState::shuffle ? "; masks of shuffles must be the same" : ""));
    return true;
  }
  stop(me.warp, me.lane);
  go_to(next());
  return false;
}

void leave() {
  Fiber& me = self();
  Warp& warp = warps[static_cast<size_t>(me.warp)];
  warp.arrived = 0;
  for (size_t i = 0; i < 32; ++i) fibers[static_cast<size_t>(me.warp) * 32 + i]->state = ThreadState::running;
  make_ready(me.warp, 0xffffffffu);
  const Schedule schedule = launch.options.schedule;
  if (schedule == Schedule::round_robin || schedule == Schedule::random) go_to(next());
}

void park(ThreadState state, Site site) {
  Fiber& me = self();
  me.state = state;
  me.site = site;
  stop(me.warp, me.lane);
  go_to(next());
}

void wake(Fiber& fiber) {
  fiber.state = ThreadState::running;
  make_ready(fiber.warp, 1u << fiber.lane);
}

void barrier(Site site) {
  Fiber& me = self();
  me.state = ThreadState::block_sync;
  me.site = site;
  Block& block = here();
  if (++block.at_barrier < launch.threads) {
    stop(me.warp, me.lane);
    go_to(next());
    return;
  }
  for (int w = me.rank * launch.threads / 32; w < (me.rank + 1) * launch.threads / 32; ++w) {
    Fiber* const* const lanes = &fibers[static_cast<size_t>(w * 32)];
    for (int lane = 1; lane < 32; ++lane) {
      if (!(lanes[lane]->site == lanes[0]->site))
        fail("divergent: lanes of warp " + std::to_string(w) + " are at different barriers: " + describe_warp(w));
    }
    for (int lane = 0; lane < 32; ++lane) lanes[lane]->state = ThreadState::running;
    make_ready(w, 0xffffffffu);
  }
  block.at_barrier = 0;
  block.epoch = ++last_epoch;
  meet_barriers();
  ++counts.barriers;
  go_to(next());
}

void wait_for_grid() { view.thread->waited = true; }

void run(void (*call)(void*), void* callable, const char* name, Index grid, int threads, int shared,
         bool dependent, int cluster) {
  static std::mutex mutex;
  static bool failed = false;
  std::lock_guard<std::mutex> lock(mutex);
  const std::string what = std::string("kernel ") + name + ": ";
  if (threads < 32 || threads > kMostThreads || threads % 32)
    throw std::runtime_error(what + std::to_string(threads) + " threads");
  if (shared < 0 || shared > kMostShared)
    throw std::runtime_error(what + std::to_string(shared) + " bytes of shared memory");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535 ||
      static_cast<int64_t>(grid.x) * grid.y * grid.z > INT32_MAX)
    throw std::runtime_error(what + "grid " + std::to_string(grid.x) + "x" + std::to_string(grid.y) + "x" +
                             std::to_string(grid.z));
  if (cluster < 1 || cluster > kMostBlocks || grid.x % cluster || threads * cluster > kMostThreads)
    throw std::runtime_error(what + "clusters of " + std::to_string(cluster) + " blocks of " + std::to_string(threads) +
                             " threads in a grid of " + std::to_string(grid.x) + " columns");
  make_fibers(threads * cluster);
  launch.call = call;
  launch.callable = callable;
  launch.name = name;
  launch.threads = threads;
  launch.cluster = cluster;
  launch.blocks = grid.x * grid.y * grid.z;
  launch.shared_bytes = static_cast<uint32_t>(shared);
  launch.dependent = dependent;
  launch.error.clear();
  launch.options = wanted;
  view.grid = grid;
  launcher = Context();
  random_state = wanted.seed * 0x9e3779b97f4a7c15u | 1;
  for (int i = 0; i < 8; ++i) random_number();
  begin_shared_launch(failed);
  begin_global_launch();

  std::vector<int> order(static_cast<size_t>(launch.blocks / cluster));  // first blocks of clusters
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i) * cluster;
  if (wanted.schedule == Schedule::backward) std::reverse(order.begin(), order.end());
  if (wanted.schedule == Schedule::random)
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  ++counts.launches;
  failed = true;
  for (const int first : order) {
    run_cluster(first, grid);
    // NOTE: fibers that were left in the middle are simply begun anew; kernels own nothing.
    if (!launch.error.empty()) throw std::runtime_error(launch.error);
  }
  failed = false;
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
