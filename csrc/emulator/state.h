// What the parts of the emulator share: the launch that runs, its threads and warps.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "../cuda/primitives.cuh"
#include "fiber.h"
#include "hopper.h"

namespace stdc {
namespace gpu {
namespace emulator {

// Where a thread is when it does not run.
enum class ThreadState : uint8_t {
  running, block_sync, warp_sync, shuffle, ldmatrix, mma, mma_levels, mbarrier_wait, cluster_wait, wgmma, wgmma_fence, wgmma_commit,
  wgmma_wait, finished
};
const char* name_of(ThreadState state);

// A copy of 16 bytes on its way; the source was read when it was issued.
struct Copy {
  uint32_t at;
  uint32_t word[4];
  Site site;
};

struct Fiber : Thread {
  Context context;
  ThreadState state;
  Site site;                  // that it waits at
  std::vector<Copy> copies;   // the oldest first
  size_t copied;              // how many of them are done
  std::deque<size_t> groups;  // ends of groups in `copies`
  uint32_t unfenced;          // the epoch of its last write to global memory that no fence has published; or 0
  uint32_t arrivals, waits;   // at the barrier of the cluster
};

struct Warp {
  uint32_t ready, arrived;  // lanes that can run; lanes at the collective that is under way
  ThreadState state;  // of the first that arrived
  Site site;
  int mask;       // of the shuffle
  bool mixed;     // another state arrived since
  bool written;   // registers were, by ldmatrix or mma, and no wgmma_fence was since
  uint32_t step;  // counts what orders the warp's accesses
  // Operands and results of the collective; each lane fills and reads its own.
  alignas(32) float a[16][16], b[16][8], c[16][8];
  alignas(32) int16_t a8[16][32], b8[8][32];
  int32_t c8[16][8];
  uint32_t address[32], result[32][4];
  float value[32];
};

struct Launch {
  void (*call)(void*);
  void* callable;
  const char* name;
  int threads, blocks, block;
  int cluster;  // blocks that run at once; `threads` are of one of them
  uint32_t shared_bytes;
  bool dependent;
  std::string error;
  Options options;  // as they were when it began
};

extern Launch launch;
extern std::vector<Fiber*> fibers;
extern std::vector<Warp> warps;
extern Statistics counts;

// A block of the cluster that runs.
struct Block {
  Index at;
  int number;
  unsigned char* shared;
  uint32_t epoch;              // changes at each barrier; never the same in two blocks
  int at_barrier, alive;       // threads
  bool added, acquired;        // it has added atomically; and has fenced since
};
constexpr int kMostBlocks = 8;
extern Block blocks[kMostBlocks];
extern uint32_t last_epoch;

inline Fiber& self() { return *static_cast<Fiber*>(view.thread); }
inline Block& here() { return blocks[view.thread->rank]; }
inline size_t all_threads() { return static_cast<size_t>(launch.threads * launch.cluster); }
// Calls f with each thread of a block.
template <class F>
void each_thread(int rank, const F& f) {
  for (int i = rank * launch.threads; i < (rank + 1) * launch.threads; ++i) f(*fibers[static_cast<size_t>(i)]);
}

// Ends the launch with this message; what it is about and where is added. Never returns.
[[noreturn]] void fail(const std::string& message);
[[noreturn]] void fail(const std::string& message, Site site);
std::string describe(Site site);
std::string describe_thread(int id);

// The calling lane arrives; true for the last one, which has to do the work and then to call leave(). The others
// return when that is done.
bool arrive(ThreadState state, Site site, int mask = 0);
void leave();
// The calling thread waits, until another one wakes it.
void park(ThreadState state, Site site);
void wake(Fiber& fiber);
uint32_t random_number();

// Shared memory: race.cpp.
void begin_shared_launch(bool forget);
void begin_shared_blocks();
void check_shared(uint32_t at, uint32_t bytes, uint32_t align, Access access, Site site);
void read_row(const Thread& thread, uint32_t at, Site site);
void end_copies(Fiber& fiber);
// Eight bytes become a barrier, and are memory again.
void place_barrier(uint32_t at, Site site);
void forget_barrier(int rank, uint32_t at);
void begin_bulk(int rank, uint32_t at, uint32_t bytes, Site site);
void end_bulk(int rank, uint32_t at, uint32_t bytes);
void note_matrix(uint32_t at, uint32_t bytes, Site site);

// Barriers in shared memory and bulk copies: mbarrier.cpp.
void begin_barriers();
void end_barriers(int rank);  // of a block
void meet_barriers();  // at a barrier of the block
bool land_late();      // nobody can go on but for copies that have not come: whether some came
void meet_cluster();   // whoever has ended counts as arrived
// Whether the calling warp may read a core matrix of wgmma.
void check_matrix(uint32_t at, Site site);

// wgmma of the block: wgmma.cpp.
void begin_groups();
void end_groups();
// How many wgmma of a warp are done; or with those under way.
uint64_t products_done(int warp, bool under_way = false);

// Global memory: memory.cpp.
void begin_global_launch();

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
