// Barriers in shared memory, and the bulk copies that count at them. A copy arrives as late as it may: when a thread
// waits for the phase that it belongs to, and all threads that it waits for have come. Who copies to where wgmma has
// read must know that this is done: whoever arrives at a barrier tells what its warp has done, and what it knows of
// others, to those who wait there.
//
// Blocks of a cluster may arrive at each other's barriers, and copy there. Whether these are there yet, and still, must
// follow from what a thread has waited for, not from who runs first.
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
  int rank;                         // of the block that it goes to
  uint32_t at, bytes;
  size_t barrier;
  uint32_t phase;
  std::vector<unsigned char> data;  // empty when it is there
  Done readers;                     // the last wgmma of each warp that read it
};

struct Barrier {
  int rank;                      // of its block
  uint32_t at;
  int all, missing;              // arrivals of a phase
  int64_t bytes;                 // that have been announced and have not come
  uint32_t phases;               // that have ended
  int owner;                     // the thread that began it, and has not fenced since; or -1
  std::vector<Fiber*> waiting;
  std::vector<uint32_t> seen;    // by each thread: phases of which it knows the end
  Done told, ended;              // in this phase and before; and before this phase
  uint32_t begun;                // cluster barriers that its thread had arrived at when it told the cluster of it
  uint32_t foreign;              // phases up to the last in which another block arrived
  uint32_t foreign_arrivals;     // cluster barriers that the last of these had arrived at
};
constexpr uint32_t kUntold = UINT32_MAX;

std::vector<Barrier> barriers;
std::vector<Bulk> copies;
std::vector<Done> known;  // to each thread
Done cluster_told;        // by those who arrived at the cluster's barrier

void learn(Done& to, const Done& from) {
  for (size_t w = 0; w < to.size(); ++w) to[w] = std::max(to[w], from[w]);
}

Done& own() {
  Done& mine = known[static_cast<size_t>(view.thread->id)];
  const int warp = view.thread->warp;
  mine[static_cast<size_t>(warp)] = products_done(warp);
  return mine;
}

int rank_here() { return view.thread->rank; }

Barrier& find(int rank, uint32_t at, Site site) {
  for (Barrier& b : barriers)
    if (b.rank == rank && b.at == at) return b;
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
    memcpy(blocks[copy.rank].shared + copy.at, copy.data.data(), copy.bytes);
    copy.data.clear();
    end_bulk(copy.rank, copy.at, copy.bytes);
    b.bytes -= copy.bytes;
  }
  end_phase(b);
}

// Of another block: whether it is there for certain, by the barriers of the cluster.
Barrier& find_foreign(int rank, uint32_t at, Site site) {
  if (rank < 0 || rank >= launch.cluster)
    fail("block " + std::to_string(rank) + " of a cluster of " + std::to_string(launch.cluster), site);
  const std::string where = " block " + std::to_string(rank) + " of the cluster";
  if (!blocks[rank].alive) fail("an mbarrier of" + where + ", which has ended", site);
  Barrier& b = find(rank, at, site);
  if (rank != view.thread->rank && (b.begun == kUntold || self().waits <= b.begun))
    fail("an mbarrier of" + where + ", which may not have begun it: no barrier of the cluster, or no cluster_fence, " +
             "lies between",
         site);
  return b;
}

void note_foreign(Barrier& b) {
  if (b.rank == view.thread->rank) return;
  b.foreign = b.phases + 1;
  b.foreign_arrivals = self().arrivals;
}

}  // namespace

void begin_barriers() {
  barriers.clear();
  copies.clear();
  known.assign(all_threads(), Done(all_threads() / 32));
  cluster_told = Done(all_threads() / 32);
}

void meet_barriers() {
  if (barriers.empty()) return;
  const int rank = rank_here();
  Done all = own();
  each_thread(rank, [&](const Fiber& f) {
    learn(all, known[static_cast<size_t>(f.id)]);
    const size_t warp = static_cast<size_t>(f.warp);
    all[warp] = products_done(f.warp);
  });
  each_thread(rank, [&](const Fiber& f) { known[static_cast<size_t>(f.id)] = all; });
}

void end_barriers(int rank) {
  for (const Bulk& copy : copies)
    if (copy.rank == rank && !copy.data.empty())
      fail("a bulk copy in flight at the end: nobody waited for that to byte " + std::to_string(copy.at));
  uint32_t waits = UINT32_MAX;
  each_thread(rank, [&](const Fiber& f) { waits = std::min(waits, f.waits); });
  for (const Barrier& b : barriers) {
    if (b.rank != rank) continue;
    uint32_t seen = 0;
    for (const uint32_t phases : b.seen) seen = std::max(seen, phases);
    if (seen < b.foreign && waits <= b.foreign_arrivals)
      fail("another block arrives at the mbarrier at byte " + std::to_string(b.at) + " of a block that may have ended: " +
           "no barrier of the cluster lies between");
    forget_barrier(rank, b.at);
  }
}

bool land_late() {
  std::vector<size_t> there;
  for (const Bulk& copy : copies) {
    const Barrier& b = barriers[copy.barrier];
    if (!copy.data.empty() && !b.missing && !b.waiting.empty()) there.push_back(copy.barrier);
  }
  if (there.empty()) return false;
  land(barriers[there[launch.options.schedule == Schedule::random ? random_number() % there.size() : 0]]);
  return true;
}

uint32_t rank() { return static_cast<uint32_t>(view.thread->rank); }

void cluster_fence() {
  for (Barrier& b : barriers)
    if (b.rank == view.thread->rank && b.begun == kUntold) b.begun = self().arrivals;
}

// Whoever has ended counts as arrived. Everybody arrives before anybody may arrive once more.
void meet_cluster() {
  uint32_t least = UINT32_MAX;
  for (size_t i = 0; i < all_threads(); ++i)
    if (fibers[i]->state != ThreadState::finished) least = std::min(least, fibers[i]->arrivals);
  for (size_t i = 0; i < all_threads(); ++i)
    if (fibers[i]->state == ThreadState::cluster_wait && fibers[i]->waits < least) wake(*fibers[i]);
}

void cluster_arrive(Site site) {
  Fiber& me = self();
  if (me.arrivals != me.waits) fail("cluster_arrive twice without cluster_wait between", site);
  ++me.arrivals;
  learn(cluster_told, own());
  meet_cluster();
}

void cluster_wait(Site site) {
  Fiber& me = self();
  if (me.arrivals != me.waits + 1) fail("cluster_wait without cluster_arrive before", site);
  uint32_t least = UINT32_MAX;
  for (size_t i = 0; i < all_threads(); ++i)
    if (fibers[i]->state != ThreadState::finished) least = std::min(least, fibers[i]->arrivals);
  if (least <= me.waits) park(ThreadState::cluster_wait, site);
  ++me.waits;
  learn(own(), cluster_told);
}

void barrier_init(uint32_t at, int arrivals, Site site) {
  if (arrivals < 1) fail("an mbarrier of " + std::to_string(arrivals) + " arrivals", site);
  place_barrier(at, site);
  barriers.push_back({view.thread->rank, at, arrivals, arrivals, 0, 0, view.thread->id, {}, {}, {}, {}, kUntold, 0, 0});
  Barrier& b = barriers.back();
  b.seen.assign(all_threads(), 0);
  b.told = b.ended = Done(known[0].size());
}

void async_fence() {
  for (Barrier& b : barriers)
    if (b.owner == view.thread->id) b.owner = -1;
}

namespace {
void arrive_at(Barrier& b, uint32_t bytes, Site site) {
  if (!b.missing) fail("more arrivals than the mbarrier at byte " + std::to_string(b.at) + " is for", site);
  b.bytes += bytes;
  learn(b.told, own());
  --b.missing;
  if (!b.missing && !b.waiting.empty()) land(b);
  end_phase(b);
}

void start_bulk(int rank, uint32_t to, const void* from, uint32_t bytes, Barrier& b, Site site) {
  if (b.owner >= 0) fail("bulk_copy to a new mbarrier without async_fence", site);
  check_shared(to, bytes, 16, Access::bulk, site);
  begin_bulk(rank, to, bytes, site);
  const auto other = [&](const Bulk& c) {
    return c.rank == rank && c.at < to + bytes && to < c.at + c.bytes && c.data.empty();
  };
  for (const Bulk& c : copies)
    for (size_t w = 0; other(c) && w < c.readers.size(); ++w)
      if (own()[w] < c.readers[w])
        fail("bulk_copy to byte " + std::to_string(to) + " of shared memory, which " +
                 describe_thread(static_cast<int>(w) * 32) + " may still read by wgmma: no barrier says that it has",
             site);
  copies.erase(std::remove_if(copies.begin(), copies.end(), other), copies.end());
  const unsigned char* const data = static_cast<const unsigned char*>(from);
  copies.push_back({rank, to, bytes, static_cast<size_t>(&b - barriers.data()), b.phases, {data, data + bytes},
                    Done(known[0].size())});
  memset(blocks[rank].shared + to, 0xff, bytes);
}

void check_source(const void* from, uint32_t bytes, Site site) {
  if (!bytes || bytes % 16) fail("bulk_copy of " + std::to_string(bytes) + " bytes", site);
  touch_global(from, bytes, 16, Access::copy, site);
  counts.copied_bytes += bytes;
}
}  // namespace

void barrier_arrive(uint32_t at, uint32_t bytes, Site site) { arrive_at(find(rank_here(), at, site), bytes, site); }

void barrier_arrive_at(uint32_t at, uint32_t rank, Site site) {
  Barrier& b = find_foreign(static_cast<int>(rank), at, site);
  note_foreign(b);
  arrive_at(b, 0, site);
}

void barrier_wait(uint32_t at, uint32_t parity, Site site) {
  if (parity > 1) fail("a phase of parity " + std::to_string(parity), site);
  const size_t index = static_cast<size_t>(&find(rank_here(), at, site) - barriers.data());
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
  check_source(from, bytes, site);
  start_bulk(rank_here(), to, from, bytes, find(rank_here(), barrier, site), site);
}

void bulk_start_of(uint32_t blocks, uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, Site site) {
  check_source(from, bytes, site);
  if (!blocks) fail("bulk_multicast to no block", site);
  for (int rank = 0; rank < 32; ++rank)
    if (blocks >> rank & 1) start_bulk(rank, to, from, bytes, find_foreign(rank, barrier, site), site);
}

void check_matrix(uint32_t at, Site site) {
  constexpr uint32_t kBytes = 128;
  check_shared(at, kBytes, 16, Access::wgmma, site);
  for (Bulk& c : copies) {
    if (c.rank != view.thread->rank || at >= c.at + c.bytes || c.at >= at + kBytes) continue;
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
