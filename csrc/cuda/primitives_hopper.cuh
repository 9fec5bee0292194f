// What primitives.cuh is for sm_90a alone: barriers in shared memory, bulk copies that arrive there, and wgmma.
#pragma once

#include "primitives.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma needs code for sm_90a"
#endif
#if !defined(__CUDACC__)
#include "../emulator/hopper.h"
#endif

namespace stdc {
namespace gpu {

constexpr int kWgmmaMajor = 9, kWgmmaMinor = 0;  // the compute capability that has it

#if defined(__CUDACC__)

// A barrier is eight bytes of shared memory. A phase ends when all arrived, and all bytes that were announced for it
// have come; then the next begins. Phases are told apart by their parity; the first is 0.
STDC_DEVICE void mbarrier_init(uint32_t at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals) : "memory");
}
// Arrives, and announces bytes.
STDC_DEVICE void mbarrier_expect(uint32_t at, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase, of the current one or the one before it, that has this parity.
STDC_DEVICE void mbarrier_wait(uint32_t at, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(at)), "r"(parity)
        : "memory");
  } while (!done);
}
// Of a cluster: blocks beside each other along x that run at once. Their ranks count from 0.
STDC_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The barrier of all its threads, in two halves. Those that have ended count as arrived. NOTE: relaxed, since cluster_fence
// publishes all that others need to see.
STDC_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
STDC_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Barriers that the thread began are seen by the cluster, after its next cluster barrier.
STDC_DEVICE void cluster_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Where a block of the cluster has what is `at` here, and an arrival at a barrier there. NOTE: a release for the cluster
// would be a MEMBAR.ALL.GPU in each step, for writes that nobody makes: who arrives has only read, by wgmma, and has
// waited for that.
STDC_DEVICE uint32_t cluster_address(uint32_t at, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(rank));
  return there;
}
STDC_DEVICE void mbarrier_arrive_there(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
// What the thread did to shared memory before is seen by its bulk copies, and by wgmma, after it.
STDC_DEVICE void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies from global to shared memory by one thread; they count at the barrier when they are there. Addresses and bytes
// are multiples of 16.
STDC_DEVICE void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// The same to each block of the cluster whose bit is set: to the same place there, counting at the barrier there.
STDC_DEVICE void bulk_multicast(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}

// Of b in shared memory, without swizzle: core matrices are eight columns with eight numbers of each, 128 bytes one
// after the other. leading: bytes to the core matrix of the next eight numbers of the same columns; stride: to that of
// the next eight columns.
STDC_DEVICE uint64_t matrix_descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
  const uint32_t low = (shared_address(at) & 0x3ffffu) >> 4 | leading >> 4 << 16, high = stride >> 4;
  return static_cast<uint64_t>(high) << 32 | low;
}

// The four warps of a group, together: c += a b, of 64x16 and 16xN. Warp i has rows 16 i to 16 i + 15 of a and c, as
// in mma; columns of c are in blocks of 8. It is done after a wgmma_wait: until then nobody touches a and c.
template <class T, int N>
STDC_DEVICE void wgmma(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t descriptor) {
#define STDC_1(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define STDC_4(j) STDC_1(j), STDC_1((j) + 1), STDC_1((j) + 2), STDC_1((j) + 3)
#define STDC_8(j) STDC_4(j), STDC_4((j) + 4)
#define STDC_NAMES_32                                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define STDC_NAMES_64                                                                                             \
  STDC_NAMES_32                                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "   \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define STDC_NAMES_128                                                                                            \
  STDC_NAMES_64                                                                                                   \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "   \
  "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, "     \
  "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "  \
  "%123, %124, %125, %126, %127"
#define STDC_WGMMA(n, type, names, operands, ...)                                                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" names "}, " operands        \
               ", 1, 1, 1, 0;"                                                                                 \
               : __VA_ARGS__                                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor))
#define STDC_OF_TYPE(n, ...)            \
  if constexpr (is_half<T>::value)      \
    STDC_WGMMA(n, "f16", __VA_ARGS__);  \
  else                                  \
    STDC_WGMMA(n, "bf16", __VA_ARGS__)
  static_assert(N == 64 || N == 128 || N == 256, "columns");
  if constexpr (N == 64) {
    STDC_OF_TYPE("64", STDC_NAMES_32, "{%32, %33, %34, %35}, %36", STDC_8(0));
  } else if constexpr (N == 128) {
    STDC_OF_TYPE("128", STDC_NAMES_64, "{%64, %65, %66, %67}, %68", STDC_8(0), STDC_8(8));
  } else {
    STDC_OF_TYPE("256", STDC_NAMES_128, "{%128, %129, %130, %131}, %132", STDC_8(0), STDC_8(8), STDC_8(16), STDC_8(24));
  }
#undef STDC_OF_TYPE
#undef STDC_WGMMA
#undef STDC_NAMES_128
#undef STDC_NAMES_64
#undef STDC_NAMES_32
#undef STDC_8
#undef STDC_4
#undef STDC_1
}
// Registers that others wrote are seen by the next wgmma.
STDC_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
STDC_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `pending` groups are under way.
template <int pending>
STDC_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// For the compiler, which does not know that wgmma_wait writes it: uses of x stay behind this.
STDC_DEVICE void hold(float& x) { asm volatile("" : "+f"(x)::"memory"); }

#endif  // __CUDACC__

}  // namespace gpu
}  // namespace stdc
