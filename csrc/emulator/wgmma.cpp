// wgmma of a warp group, of which each warp does its 16 rows when it waits for them. What it has not yet waited for is
// under way: its sums are NaN, and its operands must stay as they were when it was issued.
#include "state.h"

namespace stdc {
namespace gpu {
namespace emulator {
namespace {

typedef float Eight __attribute__((vector_size(32)));
constexpr int kInner = 16;

// Sums of a warp, 16 x n, that wgmma under way adds to, and where its lanes have them.
struct Total {
  float* c[32];
  int n, pending;
  std::vector<float> value;
};

struct Product {
  Site site;
  const uint32_t* a[32];
  uint32_t kept[32][4];              // of a, when it was issued
  std::vector<unsigned char> bytes;  // of b, column by column
  uint64_t descriptor;
  int n;
  bool half;
  float* first;                      // of the sums of the first lane
};

// Of a warp.
struct Queue {
  // Of the collective that is under way, lane by lane.
  float* c[32];
  const uint32_t* a[32];
  uint64_t descriptor[32];
  std::deque<Product> products;  // the oldest first
  std::deque<size_t> groups;     // how many of them each has
  size_t open;                   // how many have not been committed
  std::vector<Total> totals;
  uint64_t done;                 // products, in all
  uint64_t issued;               // what was, so that the warps of a group can be compared
};

std::vector<Queue> queues;  // of all blocks of the cluster

Queue& mine() { return queues[static_cast<size_t>(view.thread->warp)]; }

// Eight numbers of column `column` from `inner` on, by the PTX ISA's layout without swizzle, K-major: core matrices of
// eight columns by 16 bytes; `leading` from one to the next along K, `stride` along the columns.
uint32_t place_of(uint64_t descriptor, int column, int inner) {
  const auto field = [&](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3fff) << 4; };
  return field(0) + static_cast<uint32_t>(column / 8) * field(32) + static_cast<uint32_t>(inner / 8) * field(16) +
         static_cast<uint32_t>(column % 8) * 16;
}

std::vector<unsigned char> read_b(uint64_t descriptor, int n) {
  std::vector<unsigned char> bytes(static_cast<size_t>(n) * kInner * 2);
  for (int column = 0; column < n; ++column)
    for (int half = 0; half < 2; ++half)
      memcpy(&bytes[static_cast<size_t>(column * 2 + half) * 16],
             view.shared + place_of(descriptor, column, half * 8), 16);
  return bytes;
}

template <class T>
float number(const unsigned char* p) {
  T x;
  memcpy(&x, p, 2);
  return to_float(x);
}

// Calls f(row, column, number in the lane's registers) for its sums.
template <class F>
void each_sum(int lane, int n, const F& f) {
  for (int j = 0; j < n / 8; ++j)
    for (int k = 0; k < 4; ++k) f(lane / 4 + k / 2 * 8, j * 8 + lane % 4 * 2 + k % 2, j * 4 + k);
}

template <class T>
void multiply_all(const Product& p, std::vector<float>& sums) {
  float a[16][kInner];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
      a[row][k] = low_of<T>(p.kept[lane][i]);
      a[row][k + 1] = high_of<T>(p.kept[lane][i]);
    }
  for (int column = 0; column < p.n; column += 8) {
    Eight b[kInner];
    for (int k = 0; k < kInner; ++k)
      for (int i = 0; i < 8; ++i) b[k][i] = number<T>(&p.bytes[static_cast<size_t>((column + i) * kInner + k) * 2]);
    for (int row = 0; row < 16; ++row) {
      float* const at = &sums[static_cast<size_t>(row * p.n + column)];
      Eight sum;
      memcpy(&sum, at, sizeof(sum));
      for (int k = 0; k < kInner; ++k) sum += b[k] * a[row][k];
      memcpy(at, &sum, sizeof(sum));
    }
  }
}

void finish_total(Queue& q, size_t index, Site site) {
  Total& t = q.totals[index];
  for (int lane = 0; lane < 32; ++lane)
    each_sum(lane, t.n, [&](int row, int column, int i) {
      uint32_t bits;
      memcpy(&bits, &t.c[lane][i], 4);
      if (bits != 0xffffffffu) fail("sums of wgmma were written before its wgmma_wait", site);
      t.c[lane][i] = t.value[static_cast<size_t>(row * t.n + column)];
    });
  q.totals.erase(q.totals.begin() + static_cast<std::ptrdiff_t>(index));
}

Total& total_of(Queue& q, int n, Site site) {
  for (Total& t : q.totals) {
    if (t.c[0] != q.c[0]) continue;
    if (t.n != n || memcmp(t.c, q.c, sizeof(q.c))) fail("wgmma of sums that another wgmma has in part", site);
    return t;
  }
  q.totals.push_back({{}, n, 0, std::vector<float>(static_cast<size_t>(16 * n))});
  Total& t = q.totals.back();
  memcpy(t.c, q.c, sizeof(q.c));
  for (int lane = 0; lane < 32; ++lane) {
    each_sum(lane, n, [&](int row, int column, int i) {
      t.value[static_cast<size_t>(row * n + column)] = t.c[lane][i];
    });
    memset(t.c[lane], 0xff, static_cast<size_t>(n) * 2);
  }
  return t;
}

// The oldest product of the warp.
void finish_product(Queue& q) {
  const Product& p = q.products.front();
  for (int lane = 0; lane < 32; ++lane)
    if (memcmp(p.a[lane], p.kept[lane], 16)) fail("registers of wgmma were written before its wgmma_wait", p.site);
  if (read_b(p.descriptor, p.n) != p.bytes) fail("shared memory of wgmma was written before its wgmma_wait", p.site);
  for (size_t i = 0; i < q.totals.size(); ++i) {
    Total& t = q.totals[i];
    if (t.c[0] != p.first) continue;
    p.half ? multiply_all<half_t>(p, t.value) : multiply_all<bf16_t>(p, t.value);
    if (--t.pending == 0) finish_total(q, i, p.site);
    break;
  }
  ++counts.wgmma;
  ++q.done;
  q.products.pop_front();
}

void start_product(Queue& q, int n, bool half, Site site) {
  const uint64_t descriptor = q.descriptor[0];
  for (int lane = 1; lane < 32; ++lane)
    if (q.descriptor[lane] != descriptor) fail("lanes have different descriptors of wgmma", site);
  if (descriptor >> 49) fail("the emulator has no swizzles and no base offsets of wgmma", site);
  if (warps[static_cast<size_t>(view.thread->warp)].written)
    fail("wgmma without a wgmma_fence after its registers were written", site);
  for (int column = 0; column < n; column += 8)
    for (int k = 0; k < kInner; k += 8) check_matrix(place_of(descriptor, column, k), site);
  Product p{site, {}, {}, read_b(descriptor, n), descriptor, n, half, q.c[0]};
  memcpy(p.a, q.a, sizeof(q.a));
  for (int lane = 0; lane < 32; ++lane) memcpy(p.kept[lane], q.a[lane], 16);
  ++total_of(q, n, site).pending;
  q.products.push_back(std::move(p));
  ++q.open;
  q.issued = (q.issued ^ descriptor ^ static_cast<uint64_t>(n)) * 0x9e3779b97f4a7c15u + 1;
}

}  // namespace

void begin_groups() {
  queues.resize(all_threads() / 32);
  for (Queue& q : queues) q = Queue{};
}

void end_groups() {
  for (size_t w = 0; w < queues.size(); ++w) {
    if (!queues[w].products.empty())
      fail("wgmma under way at the end, which no wgmma_wait waited for", queues[w].products.front().site);
    if (queues[w].issued != queues[w / 4 * 4].issued)
      fail("warps " + std::to_string(w / 4 * 4) + " and " + std::to_string(w) + " of a group differ in their wgmma");
  }
}

uint64_t products_done(int warp, bool under_way) {
  const Queue& q = queues[static_cast<size_t>(warp)];
  return q.done + (under_way ? q.products.size() : 0);
}

void group_multiply(float* c, const uint32_t* a, uint64_t descriptor, int n, bool half, Site site) {
  Queue& q = mine();
  const int lane = view.thread->lane;
  if (launch.threads % 128) fail("wgmma in a block that is not of whole warp groups", site);
  q.c[lane] = c;
  q.a[lane] = a;
  q.descriptor[lane] = descriptor;
  if (arrive(ThreadState::wgmma, site, n + half)) {
    start_product(q, n, half, site);
    leave();
  }
}

void group_fence(Site site) {
  if (arrive(ThreadState::wgmma_fence, site)) {
    warps[static_cast<size_t>(view.thread->warp)].written = false;
    leave();
  }
}

void group_commit(Site site) {
  Queue& q = mine();
  if (arrive(ThreadState::wgmma_commit, site)) {
    q.groups.push_back(q.open);
    q.open = 0;
    leave();
  }
}

void group_wait(int pending, Site site) {
  Queue& q = mine();
  if (arrive(ThreadState::wgmma_wait, site, pending)) {
    while (q.groups.size() > static_cast<size_t>(pending)) {
      for (size_t i = 0; i < q.groups.front(); ++i) finish_product(q);
      q.groups.pop_front();
    }
    leave();
  }
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
