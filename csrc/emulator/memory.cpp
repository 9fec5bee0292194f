// Global memory: which of it kernels may use and when, and what blocks of a launch must not share.
#include "state.h"

namespace stdc {
namespace gpu {
namespace emulator {
namespace {

struct Known {
  const char* begin;
  const char* end;
  Memory kind;
  std::vector<uint32_t> writers;  // per byte: base + 2 * block, + 1 for atomics; less than base: of earlier launches
};

std::vector<Known> known;
size_t recent[4];  // the ranges found last
unsigned turn = 0;
uint32_t base = 1;
std::vector<char> released;            // blocks that had fenced all they wrote before they added

const char* name_of(Access access) {
  static const char* const names[] = {"load", "store", "ldmatrix", "cp_async", "load_weight", "atomic_add"};
  return names[static_cast<int>(access)];
}

bool has(const Known& k, const char* p, size_t bytes) {
  return p >= k.begin && p < k.end && static_cast<size_t>(k.end - p) >= bytes;
}

[[noreturn]] void fail_outside(const char* p, size_t bytes, Access access, Site site) {
  const Known* nearest = known.data();
  int64_t least = INT64_MAX;
  bool after = false;
  for (const Known& k : known) {
    const int64_t before = k.begin - p, behind = p - k.end + static_cast<int64_t>(bytes);
    const int64_t distance = before > 0 ? before : behind;
    if (distance >= least) continue;
    least = distance;
    nearest = &k;
    after = before <= 0;
  }
  fail(std::string(name_of(access)) + " of " + std::to_string(bytes) + " bytes outside of all tensors: it " +
           (after ? "ends " : "begins ") + std::to_string(least) + " bytes " +
           (after ? "after the end" : "before the begin") + " of range " + std::to_string(nearest - known.data()) +
           " (" + (nearest->kind == Memory::weight ? "weight" : "data") + ", " +
           std::to_string(nearest->end - nearest->begin) + " bytes)",
       site);
}

Known& find(const char* p, size_t bytes, Access access, Site site) {
  for (const size_t i : recent)
    if (has(known[i], p, bytes)) return known[i];
  for (size_t i = 0; i < known.size(); ++i) {
    if (!has(known[i], p, bytes)) continue;
    recent[turn++ % 4] = i;
    return known[i];
  }
  fail_outside(p, bytes, access, site);
}

void check_blocks(Known& k, const char* p, size_t bytes, Access access, Site site) {
  const bool reads = access == Access::load || access == Access::copy;
  const uint32_t mine = base + 2 * static_cast<uint32_t>(launch.block) + (access == Access::atomic);
  uint32_t* const writers = &k.writers[static_cast<size_t>(p - k.begin)];
  for (size_t i = 0; i < bytes; ++i) {
    const uint32_t writer = writers[i];
    if (writer >= base && (writer - base) / 2 != static_cast<uint32_t>(launch.block)) {
      const uint32_t block = (writer - base) / 2;
      const bool atomics = (writer - base) % 2 && access == Access::atomic;
      const bool in_order = reads && here().acquired && released[block];
      if (!atomics && !in_order)
        fail("race between blocks: " + std::string(name_of(access)) + " at byte " +
                 std::to_string(p - k.begin + static_cast<std::ptrdiff_t>(i)) + " of range " +
                 std::to_string(&k - known.data()) + " that block " + std::to_string(block) +
                 " of this launch wrote" + (reads && !here().acquired ? ", without atomic_add and fence before" : "") +
                 (reads && !released[block] ? ", which had not fenced before its atomic_add" : ""),
             site);
    }
    if (!reads) writers[i] = mine;
  }
}

}  // namespace

void set_memory(std::vector<Range> ranges) {
  known.clear();
  for (const Range& r : ranges) {
    const char* const begin = static_cast<const char*>(r.base);
    known.push_back({begin, begin + r.bytes, r.kind, {}});
  }
  memset(recent, 0, sizeof(recent));
}

void begin_global_launch() {
  if (!launch.options.block_races) return;
  released.assign(static_cast<size_t>(launch.blocks), 0);
  static uint32_t blocks = 0;  // of the launch before
  if (base + 2ull * blocks + 2ull * static_cast<uint32_t>(launch.blocks) > UINT32_MAX) {
    for (Known& k : known) k.writers.clear();
    base = 1;
  } else {
    base += 2 * blocks;
  }
  blocks = static_cast<uint32_t>(launch.blocks);
  for (Known& k : known)
    if (k.kind == Memory::data && k.writers.empty()) k.writers.assign(static_cast<size_t>(k.end - k.begin), 0);
}

void touch_global(const void* pointer, size_t bytes, size_t align, Access access, Site site) {
  const char* const p = static_cast<const char*>(pointer);
  const Thread& me = *view.thread;
  if (reinterpret_cast<uintptr_t>(p) % align)
    fail(std::string(name_of(access)) + " of a misaligned address: not a multiple of " + std::to_string(align), site);
  const bool writes = access == Access::store || access == Access::atomic;
  const bool early = launch.dependent && !me.waited;
  if (writes && early) fail(std::string(name_of(access)) + " before grid_wait in a dependent launch", site);
  if (!known.empty()) {
    Known& k = find(p, bytes, access, site);
    if (k.kind == Memory::data) {
      if (access == Access::weight)
        fail("load_weight of data, which other kernels write: load would be right", site);
      if (early) fail(std::string(name_of(access)) + " of data before grid_wait in a dependent launch", site);
      if (launch.options.block_races) check_blocks(k, p, bytes, access, site);
    } else if (writes) {
      fail(std::string(name_of(access)) + " into weights", site);
    }
  }
  if (access == Access::store) self().unfenced = here().epoch;
  if (access == Access::atomic && launch.options.block_races) {
    bool all = true;
    each_thread(me.rank, [&](const Fiber& f) { all = all && !f.unfenced; });
    if (all) released[static_cast<size_t>(launch.block)] = 1;
    here().added = true;
  }
}

void fence() {
  self().unfenced = 0;
  // Fences are cumulative: what others wrote before a barrier is published too.
  each_thread(view.thread->rank, [](Fiber& f) {
    if (f.unfenced < here().epoch) f.unfenced = 0;
  });
  if (here().added) here().acquired = true;
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
