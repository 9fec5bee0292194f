// Barriers in shared memory, and the bulk copies that count at them. A copy arrives as late as it may: when a thread
// waits for the phase that it belongs to, and all threads that it waits for have come. Who copies to where wgmma has
// read must know that this is done: whoever arrives at a barrier tells what its warp has done, and what it knows of
// others, to those who wait there.
#include <algorithm>

#include "state.h"

namespace stdc {
namespace gpu {
namespace emulator {
namespace {

// Of each warp how many of its wgmma are done.
typedef std::vector<uint64_t> Done;

// A copy on its way, and where one went, until another goes there.
struct Bulk {
  uint32_t at, bytes;
  size_t barrier;
  uint32_t phase;
  std::vector<unsigned char> data;  // empty when it is there
  Done readers;                     // the last wgmma of each warp that read it
};

struct Barrier {
  uint32_t at;
  int all, missing;              // arrivals of a phase
  int64_t bytes;                 // that have been announced and have not come
  uint32_t phases;               // that have ended
  int owner;                     // the thread that began it, and has not fenced since; or -1
  std::vector<Fiber*> waiting;
  std::vector<uint32_t> seen;    // by each thread: phases of which it knows the end
  Done told, ended;              // in this phase and before; and before this phase
};

std::vector<Barrier> barriers;
std::vector<Bulk> copies;
std::vector<Done> known;  // to each thread

void learn(Done& to, const Done& from) {
  for (size_t w = 0; w < to.size(); ++w) to[w] = std::max(to[w], from[w]);
}

Done& own() {
  Done& mine = known[static_cast<size_t>(view.thread->id)];
  const int warp = view.thread->warp;
  mine[static_cast<size_t>(warp)] = products_done(warp);
  return mine;
}

Barrier& find(uint32_t at, Site site) {
  for (Barrier& b : barriers)
    if (b.at == at) return b;
  fail("no mbarrier at byte " + std::to_string(at) + " of shared memory", site);
}

void end_phase(Barrier& b) {
  if (b.missing || b.bytes) return;
  ++b.phases;
  b.missing = b.all;
  b.ended = b.told;
  for (Fiber* f : b.waiting) wake(*f);
  b.waiting.clear();
}

void land(Barrier& b) {
  const size_t index = static_cast<size_t>(&b - barriers.data());
  for (Bulk& copy : copies) {
    if (copy.barrier != index || copy.data.empty()) continue;
    memcpy(view.shared + copy.at, copy.data.data(), copy.bytes);
    copy.data.clear();
    end_bulk(copy.at, copy.bytes);
    b.bytes -= copy.bytes;
  }
  end_phase(b);
}

}  // namespace

void begin_barriers() {
  for (const Barrier& b : barriers) forget_barrier(b.at);
  barriers.clear();
  copies.clear();
  known.assign(static_cast<size_t>(launch.threads), Done(static_cast<size_t>(launch.threads / 32)));
}

void meet_barriers() {
  if (barriers.empty()) return;
  for (size_t w = 0; w < known[0].size(); ++w)
    for (Done& one : known) one[w] = products_done(static_cast<int>(w));
}

void end_barriers() {
  for (const Bulk& copy : copies)
    if (!copy.data.empty())
      fail("a bulk copy in flight at the end: nobody waited for that to byte " + std::to_string(copy.at));
}

void barrier_init(uint32_t at, int arrivals, Site site) {
  if (arrivals < 1) fail("an mbarrier of " + std::to_string(arrivals) + " arrivals", site);
  place_barrier(at, site);
  barriers.push_back({at, arrivals, arrivals, 0, 0, view.thread->id, {}, {}, {}, {}});
  Barrier& b = barriers.back();
  b.seen.assign(static_cast<size_t>(launch.threads), 0);
  b.told = b.ended = Done(known[0].size());
}

void async_fence() {
  for (Barrier& b : barriers)
    if (b.owner == view.thread->id) b.owner = -1;
}

void barrier_arrive(uint32_t at, uint32_t bytes, Site site) {
  Barrier& b = find(at, site);
  if (!b.missing) fail("more arrivals than the mbarrier at byte " + std::to_string(at) + " is for", site);
  b.bytes += bytes;
  learn(b.told, own());
  --b.missing;
  if (!b.missing && !b.waiting.empty()) land(b);
  end_phase(b);
}

void barrier_wait(uint32_t at, uint32_t parity, Site site) {
  if (parity > 1) fail("a phase of parity " + std::to_string(parity), site);
  const size_t index = static_cast<size_t>(&find(at, site) - barriers.data());
  while ((barriers[index].phases & 1) == parity) {
    Barrier& b = barriers[index];
    if (!b.missing) {
      land(b);
      if ((b.phases & 1) != parity) break;
    }
    b.waiting.push_back(&self());
    park(ThreadState::mbarrier_wait, site);
  }
  barriers[index].seen[static_cast<size_t>(view.thread->id)] = barriers[index].phases;
  learn(own(), barriers[index].ended);
}

void bulk_start(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, Site site) {
  Barrier& b = find(barrier, site);
  if (!bytes || bytes % 16) fail("bulk_copy of " + std::to_string(bytes) + " bytes", site);
  if (b.owner >= 0) fail("bulk_copy to a new mbarrier without async_fence", site);
  check_shared(to, bytes, 16, Access::bulk, site);
  touch_global(from, bytes, 16, Access::copy, site);
  counts.copied_bytes += bytes;
  begin_bulk(to, bytes, site);
  const auto other = [&](const Bulk& c) { return c.at < to + bytes && to < c.at + c.bytes && c.data.empty(); };
  for (const Bulk& c : copies)
    for (size_t w = 0; other(c) && w < c.readers.size(); ++w)
      if (own()[w] < c.readers[w])
        fail("bulk_copy to byte " + std::to_string(to) + " of shared memory, which warp " + std::to_string(w) +
                 " may still read by wgmma: no barrier says that it has",
             site);
  copies.erase(std::remove_if(copies.begin(), copies.end(), other), copies.end());
  const unsigned char* const data = static_cast<const unsigned char*>(from);
  copies.push_back({to, bytes, static_cast<size_t>(&b - barriers.data()), b.phases, {data, data + bytes},
                    Done(known[0].size())});
  memset(view.shared + to, 0xff, bytes);
}

void check_matrix(uint32_t at, Site site) {
  constexpr uint32_t kBytes = 128;
  check_shared(at, kBytes, 16, Access::wgmma, site);
  for (Bulk& c : copies) {
    if (at >= c.at + c.bytes || c.at >= at + kBytes) continue;
    if (!c.data.empty())
      fail("wgmma of shared memory while a bulk_copy to byte " + std::to_string(c.at) + " is in flight", site);
    const int first = view.thread->warp * 32;
    for (int id = first; id < first + 32; ++id)
      if (barriers[c.barrier].seen[static_cast<size_t>(id)] <= c.phase)
        fail("wgmma of what a bulk_copy wrote to byte " + std::to_string(c.at) + ", for which " +
                 describe_thread(id) + " did not wait",
             site);
    c.readers[static_cast<size_t>(view.thread->warp)] = products_done(view.thread->warp, true) + 1;
  }
  note_matrix(at, kBytes, site);
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
