// The primitives of csrc/cuda/primitives_hopper.cuh on the CPU. What is asynchronous is done as late as it may be: a
// bulk copy when somebody waits for its barrier, wgmma when its warp waits for its group. Until then the memory that
// they write is NaN, and what they read is checked to be unchanged when they are done.
#pragma once

#include "simt.h"

namespace stdc {
namespace gpu {
namespace emulator {

STDC_HIDDEN void barrier_init(uint32_t at, int arrivals, Site site);
STDC_HIDDEN void barrier_arrive(uint32_t at, uint32_t bytes, Site site);
STDC_HIDDEN void barrier_wait(uint32_t at, uint32_t parity, Site site);
STDC_HIDDEN void async_fence();
STDC_HIDDEN void cluster_fence();
STDC_HIDDEN void cluster_arrive(Site site);
STDC_HIDDEN void cluster_wait(Site site);
STDC_HIDDEN uint32_t rank();
STDC_HIDDEN void barrier_arrive_at(uint32_t at, uint32_t rank, Site site);
STDC_HIDDEN void bulk_start(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, Site site);
STDC_HIDDEN void bulk_start_of(uint32_t blocks, uint32_t to, const void* from, uint32_t bytes, uint32_t barrier,
                               Site site);
// c: the lane's n / 2 sums.
STDC_HIDDEN void group_multiply(float* c, const uint32_t* a, uint64_t descriptor, int n, bool half, Site site);
STDC_HIDDEN void group_fence(Site site);
STDC_HIDDEN void group_commit(Site site);
STDC_HIDDEN void group_wait(int pending, Site site);

}  // namespace emulator

// The functions of primitives_hopper.cuh; see there.
inline void mbarrier_init(uint32_t at, int arrivals, STDC_HERE) { emulator::barrier_init(at, arrivals, {file, line}); }
inline void mbarrier_expect(uint32_t at, uint32_t bytes, STDC_HERE) {
  emulator::barrier_arrive(at, bytes, {file, line});
}
inline void mbarrier_wait(uint32_t at, uint32_t parity, STDC_HERE) {
  emulator::barrier_wait(at, parity, {file, line});
}
inline uint32_t cluster_address(uint32_t at, uint32_t rank) { return rank << 24 | at; }
inline void mbarrier_arrive_there(uint32_t address, STDC_HERE) {
  emulator::barrier_arrive_at(address & 0xffffffu, address >> 24, {file, line});
}
inline uint32_t cluster_rank() { return emulator::rank(); }
inline void cluster_arrive(STDC_HERE) { emulator::cluster_arrive({file, line}); }
inline void cluster_wait(STDC_HERE) { emulator::cluster_wait({file, line}); }
inline void cluster_fence() { emulator::cluster_fence(); }
inline void async_fence() { emulator::async_fence(); }
inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, STDC_HERE) {
  emulator::bulk_start(to, from, bytes, barrier, {file, line});
}
inline void bulk_multicast(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t blocks,
                           STDC_HERE) {
  emulator::bulk_start_of(blocks, to, from, bytes, barrier, {file, line});
}
inline uint64_t matrix_descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>(stride >> 4) << 32 | leading >> 4 << 16 | (at & 0x3ffffu) >> 4;
}
template <class T, int N>
inline void wgmma(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t descriptor, STDC_HERE) {
  emulator::group_multiply(&c[0][0], a, descriptor, N, is_half<T>::value, {file, line});
}
inline void wgmma_fence(STDC_HERE) { emulator::group_fence({file, line}); }
inline void wgmma_commit(STDC_HERE) { emulator::group_commit({file, line}); }
template <int pending>
inline void wgmma_wait(STDC_HERE) {
  static_assert(pending >= 0, "groups");
  emulator::group_wait(pending, {file, line});
}
inline void hold(float&) {}

}  // namespace gpu
}  // namespace stdc
