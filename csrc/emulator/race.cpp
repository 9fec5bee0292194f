// Shared memory: bounds, races, and copies on their way. Two accesses by different threads, one of them a write, are
// in order if a barrier of the block lies between them, or within a warp a warp_sync or a shuffle.
#include <algorithm>

#include "state.h"

namespace stdc {
namespace gpu {
namespace emulator {
namespace {

constexpr uint32_t kCell = 2;             // bytes
constexpr uint32_t kAlways = UINT32_MAX;  // the epoch of cells that a copy is on its way to, and of barriers
constexpr uint16_t kNobody = UINT16_MAX;

// The last write to a cell and the reads since the last barrier.
struct Cell {
  uint32_t write_epoch, read_epoch;
  uint16_t write_step, read_step;  // of the warp
  uint16_t writer, reader, other;  // other: a reader of another warp than reader's, or nobody
  uint16_t write_line, read_line;
  Access write, read;
  bool lanes;  // more lanes than the reader read in its step
};

std::vector<Cell> cells;  // block by block of the cluster
std::vector<Vec> memory;
size_t of_block = 0;      // cells

Cell* cell(int rank, uint32_t at) { return &cells[static_cast<size_t>(rank) * of_block + at / kCell]; }

std::string name_of(Access access) {
  static const char* const names[] = {"shared_load", "shared_store", "ldmatrix", "cp_async", "", "",
                                      "bulk_copy",   "wgmma",        "mbarrier"};
  return names[static_cast<int>(access)];
}

[[noreturn]] void fail_race(const Thread& thread, uint32_t at, Access access, Site site, int other, Access theirs,
                            int line) {
  fail("race in shared memory at byte " + std::to_string(at) + ": " + name_of(theirs) + " by " +
       describe_thread(other) + " at line " + std::to_string(line) + " and " + name_of(access) + " by " +
       describe_thread(thread.id) + " at " + describe(site) + " with no barrier between them");
}

// Whether an access by `other` at `step`, in the same epoch, may be at the same time as one of `thread` now.
bool unordered(const Thread& thread, uint16_t step, uint16_t now, int other) {
  return other / 32 != thread.warp || step == now;
}

// Whether all lanes of the warp take part.
bool collective(Access access) { return access == Access::ldmatrix || access == Access::wgmma; }

void check_writer(const Cell& c, const Thread& thread, uint16_t now, uint32_t at, Access access, Site site) {
  if (c.write_epoch == kAlways)
    fail(name_of(access) + " of byte " + std::to_string(at) + " of shared memory by " + describe_thread(thread.id) +
         " at " + describe(site) + " while a " + name_of(c.write) + " by " + describe_thread(c.writer) + " at line " +
         std::to_string(c.write_line) + (c.write == Access::mbarrier ? " is there" : " is in flight"));
  // Between bulk copies and wgmma are mbarriers, which mbarrier.cpp sees to.
  if (c.write == Access::bulk && (access == Access::bulk || access == Access::wgmma)) return;
  // All lanes have what ldmatrix reads, other than its own lane's too.
  if ((c.writer != thread.id || collective(access)) && unordered(thread, c.write_step, now, c.writer))
    fail_race(thread, at, access, site, c.writer, c.write, c.write_line);
}

void note_read(const Thread& thread, uint32_t at, uint32_t bytes, Access access, Site site) {
  const uint16_t now = static_cast<uint16_t>(warps[static_cast<size_t>(thread.warp)].step);
  const uint16_t id = static_cast<uint16_t>(thread.id);
  const uint32_t epoch = here().epoch;
  Cell* const first = cell(thread.rank, 0);
  Cell* const end = first + (at + bytes - 1) / kCell + 1;
  for (Cell* c = first + at / kCell; c != end; ++c) {
    if (c->write_epoch >= epoch)
      check_writer(*c, thread, now, static_cast<uint32_t>(c - first) * kCell, access, site);
    if (c->read_epoch != epoch) {
      c->read_epoch = epoch;
      c->other = kNobody;
      c->lanes = collective(access);
    } else if (c->reader / 32 != thread.warp) {
      c->other = c->reader;
      c->lanes = collective(access);
    } else if (c->read_step != now) {
      c->lanes = collective(access);
    } else {
      c->lanes |= c->reader != id || collective(access);
    }
    c->reader = id;
    c->read_step = now;
    c->read = access;
    c->read_line = static_cast<uint16_t>(site.line);
  }
}

// rank: of the block that has the memory.
void note_write(const Thread& thread, int rank, uint32_t at, uint32_t bytes, Access access, Site site) {
  const uint16_t now = static_cast<uint16_t>(warps[static_cast<size_t>(thread.warp)].step);
  const uint16_t id = static_cast<uint16_t>(thread.id);
  const uint32_t epoch = blocks[rank].epoch;
  Cell* const first = cell(rank, 0);
  Cell* const end = first + (at + bytes - 1) / kCell + 1;
  for (Cell* c = first + at / kCell; c != end; ++c) {
    const uint32_t place = static_cast<uint32_t>(c - first) * kCell;
    if (c->write_epoch >= epoch) check_writer(*c, thread, now, place, access, site);
    if (c->read_epoch == epoch && !(access == Access::bulk && c->read == Access::wgmma)) {
      if (c->other != kNobody) {
        const int other = c->reader / 32 != thread.warp ? c->reader : c->other;
        fail_race(thread, place, access, site, other, c->read, c->read_line);
      }
      if ((c->reader != id || c->lanes) && unordered(thread, c->read_step, now, c->reader))
        fail_race(thread, place, access, site, c->reader, c->read, c->read_line);
    }
    c->write_epoch = epoch;
    c->write_step = now;
    c->writer = id;
    c->write = access;
    c->write_line = static_cast<uint16_t>(site.line);
  }
}

// Marks the place of a copy: nobody may use it before the copy is done.
void set_copying(const Thread& thread, int rank, uint32_t at, bool copying, uint32_t bytes = 16) {
  Cell* const first = cell(rank, at);
  for (Cell* c = first; c != first + bytes / kCell; ++c) {
    c->write_epoch = copying ? kAlways : blocks[rank].epoch;
    c->write_step = static_cast<uint16_t>(warps[static_cast<size_t>(thread.warp)].step);
  }
}

}  // namespace

void begin_shared_launch(bool forget) {
  const size_t vectors = (launch.shared_bytes + 15) / 16;
  memory.resize(vectors * static_cast<size_t>(launch.cluster));
  for (int rank = 0; rank < launch.cluster; ++rank)
    blocks[rank].shared = reinterpret_cast<unsigned char*>(memory.data() + static_cast<size_t>(rank) * vectors);
  if (forget || last_epoch > UINT32_MAX / 2) {
    cells.clear();
    last_epoch = 0;
  }
  of_block = vectors * 16 / kCell;
  const size_t size = of_block * static_cast<size_t>(launch.cluster);
  if (cells.size() < size) cells.resize(size, Cell());
}

void begin_shared_blocks() {
  if (!memory.empty()) memset(memory.data(), launch.options.poison ? 0xff : 0, memory.size() * 16);
}

void check_shared(uint32_t at, uint32_t bytes, uint32_t align, Access access, Site site) {
  if (at > launch.shared_bytes || launch.shared_bytes - at < bytes)
    fail(name_of(access) + " of " + std::to_string(bytes) + " bytes at byte " + std::to_string(at) +
             " out of bounds: the launch has " + std::to_string(launch.shared_bytes) + " bytes of shared memory",
         site);
  if (at % align)
    fail(name_of(access) + " at byte " + std::to_string(at) + " of shared memory is misaligned: not a multiple of " +
             std::to_string(align),
         site);
}

void touch_shared(uint32_t at, uint32_t bytes, uint32_t align, Access access, Site site) {
  check_shared(at, bytes, align, access, site);
  if (!launch.options.races) return;
  if (access == Access::load)
    note_read(*view.thread, at, bytes, access, site);
  else
    note_write(*view.thread, view.thread->rank, at, bytes, access, site);
}

void read_row(const Thread& thread, uint32_t at, Site site) {
  if (launch.options.races) note_read(thread, at, 16, Access::ldmatrix, site);
}

void copy_start(uint32_t at, const void* from, int bytes, Site site) {
  if (bytes < 0 || bytes > 16) fail("cp_async of " + std::to_string(bytes) + " bytes", site);
  check_shared(at, 16, 16, Access::copy, site);
  Fiber& me = self();
  Copy copy{at, {0, 0, 0, 0}, site};
  if (bytes) {
    touch_global(from, static_cast<size_t>(bytes), 16, Access::copy, site);
    memcpy(copy.word, from, static_cast<size_t>(bytes));
    counts.copied_bytes += bytes;
  }
  if (launch.options.races) {
    note_write(me, me.rank, at, 16, Access::copy, site);
    set_copying(me, me.rank, at, true);
  }
  memset(view.shared + at, 0xff, 16);
  me.copies.push_back(copy);
}

void copy_commit() {
  Fiber& me = self();
  me.groups.push_back(me.copies.size());
}

void copy_wait(int pending) {
  Fiber& me = self();
  size_t end = 0;
  while (me.groups.size() > static_cast<size_t>(pending)) {
    end = me.groups.front();
    me.groups.pop_front();
  }
  for (; me.copied < end; ++me.copied) {
    const Copy& copy = me.copies[me.copied];
    memcpy(view.shared + copy.at, copy.word, 16);
    if (launch.options.races) set_copying(me, me.rank, copy.at, false);
  }
  if (me.copied >= 64) {
    me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(me.copied));
    for (size_t& group : me.groups) group -= me.copied;
    me.copied = 0;
  }
}

void place_barrier(uint32_t at, Site site) {
  check_shared(at, 8, 8, Access::mbarrier, site);
  if (!launch.options.races) return;
  note_write(*view.thread, view.thread->rank, at, 8, Access::mbarrier, site);
  set_copying(*view.thread, view.thread->rank, at, true, 8);
}

void forget_barrier(int rank, uint32_t at) {
  std::fill(cell(rank, at), cell(rank, at) + 8 / kCell, Cell());
}

void begin_bulk(int rank, uint32_t at, uint32_t bytes, Site site) {
  if (!launch.options.races) return;
  note_write(*view.thread, rank, at, bytes, Access::bulk, site);
  set_copying(*view.thread, rank, at, true, bytes);
}

void end_bulk(int rank, uint32_t at, uint32_t bytes) {
  if (launch.options.races) set_copying(*view.thread, rank, at, false, bytes);
}

void note_matrix(uint32_t at, uint32_t bytes, Site site) {
  if (launch.options.races) note_read(*view.thread, at, bytes, Access::wgmma, site);
}

void end_copies(Fiber& fiber) {
  if (fiber.copied < fiber.copies.size())
    fail("copies in flight at the end: " + std::to_string(fiber.copies.size() - fiber.copied) +
             " that no cp_async_wait waited for, the first of them to byte " +
             std::to_string(fiber.copies[fiber.copied].at),
         fiber.copies[fiber.copied].site);
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
