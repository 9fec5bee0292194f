// All that kernels may use of the hardware: the only file with PTX, built-ins and intrinsics. Each has a body for the
// device and one for the host, where csrc/emulator runs the same kernels on the CPU.
//
// Kernels index threads in one dimension; blocks have 32 * n threads. Shared memory is one dynamic allocation,
// addressed by 32-bit offsets in bytes from its start, so that the host can watch every access.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define STDC_DEVICE __device__ __forceinline__
#define STDC_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define STDC_CONSTANT __grid_constant__
#define STDC_UNROLL _Pragma("unroll")
#define STDC_UNROLL_4 _Pragma("unroll 4")
#define STDC_ROLLED _Pragma("unroll 1")
#else
#define STDC_DEVICE inline
#define STDC_KERNEL(threads, blocks) void
#define STDC_CONSTANT
#define STDC_UNROLL
#define STDC_UNROLL_4
#define STDC_ROLLED
#endif

// What only a GPU can decide between: STDC_FAST_CUDA_OPTIONS of the build.
#ifndef STDC_LOAD_CG
#define STDC_LOAD_CG 0  // whether `load` passes a processor's own cache by
#endif
#ifndef STDC_DEPENDENTS
#define STDC_DEPENDENTS 1  // the Place where kernels let the next one start; 0 is at their end
#endif
#ifndef STDC_CARVEOUT
#define STDC_CARVEOUT -1  // per cent of a processor's cache that kernels prefer as shared memory; -1 says nothing
#endif

namespace stdc {
namespace gpu {

// Where a kernel may let the next one start: before all else, and when only its sums are left to be stored.
enum Place : int { kFirst = 1, kSummed = 2 };

struct Index {
  int x, y, z;
};

// Bits of a float16 and of a bfloat16.
struct half_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};
// Two levels of 8 bits, which kernels move like one number of 16.
struct levels_t {
  uint16_t bits;
};

// Sixteen bytes, aligned: the widest access.
struct alignas(16) Vec {
  uint32_t word[4];
};

// Eight bytes, aligned.
struct alignas(8) Pair {
  uint32_t word[2];
};

template <class T>
struct is_half {
  static constexpr bool value = false;
};
template <>
struct is_half<half_t> {
  static constexpr bool value = true;
};
template <class T>
struct is_levels {
  static constexpr bool value = false;
};
template <>
struct is_levels<levels_t> {
  static constexpr bool value = true;
};

}  // namespace gpu
}  // namespace stdc

#if !defined(__CUDACC__)
#include "../emulator/simt.h"
#endif

namespace stdc {
namespace gpu {

#if defined(__CUDACC__)

extern __shared__ __align__(128) unsigned char stdc_shared[];

// Threads.
STDC_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
STDC_DEVICE int lane_id() { return static_cast<int>(threadIdx.x & 31); }
STDC_DEVICE int warp_id() { return static_cast<int>(threadIdx.x >> 5); }
STDC_DEVICE Index block_id() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
STDC_DEVICE Index grid_size() {
  return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
}
STDC_DEVICE void block_sync() { __syncthreads(); }
// No kernel needs it yet; what is shared is shared by blocks.
STDC_DEVICE void warp_sync() { __syncwarp(); }
STDC_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// Shared memory.
template <class V>
STDC_DEVICE V shared_load(uint32_t at) {
  return *reinterpret_cast<const V*>(stdc_shared + at);
}
template <class V>
STDC_DEVICE void shared_store(uint32_t at, V v) {
  *reinterpret_cast<V*>(stdc_shared + at) = v;
}
STDC_DEVICE uint32_t shared_address(uint32_t at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(stdc_shared)) + at;
}

// Four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8. Not a clobber of memory,
// so that other reads may pass it: what it reads was written before a barrier, which nothing passes.
STDC_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at)));
}

// Asynchronous copies of 16 bytes from global to shared memory, of which those from `bytes` on are zero. Whoever
// issued them sees them after cp_async_wait, others after a barrier after that.
STDC_DEVICE void cp_async(uint32_t at, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(at)), "l"(from), "r"(bytes)
               : "memory");
}
STDC_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are on their way.
template <int pending>
STDC_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// c += a b. a is 16x16, b 16x8, c 16x8 in float32.
template <class T>
STDC_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (is_half<T>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
// a is 16x32, of int8 if `negative` and else of uint8, b 32x8 of int8; c 16x8 in int32.
template <bool negative>
STDC_DEVICE void mma_levels(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (negative) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Global memory. What another kernel wrote is read by `load` only, after grid_wait; weights by `load_weight`, at
// any time. NOTE: `load` may find lines in a processor's own cache. Those are stale only if some block read them
// before the kernel that wrote them was done; STDC_LOAD_CG reads from L2, where there is one copy.
template <class V>
STDC_DEVICE V load(const V* p) {
#if STDC_LOAD_CG
  if constexpr (sizeof(V) == sizeof(uint4)) {
    const uint4 v = __ldcg(reinterpret_cast<const uint4*>(p));
    return *reinterpret_cast<const V*>(&v);
  } else {
    return __ldcg(p);
  }
#else
  return *p;
#endif
}
template <class V>
STDC_DEVICE V load_weight(const V* p) {
  return *p;
}
STDC_DEVICE float load_weight(const float* p) { return __ldg(p); }  // scalars stay in the cache for constants
// Weights that are to be on their way before grid_wait. NOTE: ptxas moves weak loads behind it, and no strong ones.
STDC_DEVICE int load_early(const int* p) {
  int v;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
STDC_DEVICE float load_early(const float* p) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}
template <class V>
STDC_DEVICE void store(V* p, V v) {
  *p = v;
}
// What another block of this launch wrote, after its fence and an atomic_add of both.
STDC_DEVICE Vec load_fresh(const Vec* p) {
  Vec v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
  return v;
}
STDC_DEVICE int atomic_add(int* p, int v) { return atomicAdd(p, v); }
// Writes before it are seen by all threads of the device before writes after it.
STDC_DEVICE void fence() { __threadfence(); }

// Dependent launches. NOTE: before sm_90 there are none; a kernel starts when the one before it is done.
template <Place place>
STDC_DEVICE void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (place == STDC_DEPENDENTS) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until the kernels before are done and what they wrote is seen.
STDC_DEVICE void grid_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Numbers.
STDC_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
STDC_DEVICE float exponential(float x) { return expf(x); }
STDC_DEVICE float to_float(half_t x) { return __half2float(__ushort_as_half(x.bits)); }
STDC_DEVICE float to_float(bf16_t x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

// Two numbers in a word, the first in its lower half; to nearest even, NaN stays NaN.
template <class T>
STDC_DEVICE uint32_t pack(float low, float high) {
  if constexpr (is_half<T>::value) {
    const __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}

STDC_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
STDC_DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }

#endif  // __CUDACC__

// The same of sums, which are float or int32_t.
STDC_DEVICE uint32_t as_bits(int32_t x) { return static_cast<uint32_t>(x); }
template <class V>
STDC_DEVICE V from_bits(uint32_t bits);
template <>
STDC_DEVICE float from_bits<float>(uint32_t bits) {
  return as_float(bits);
}
template <>
STDC_DEVICE int32_t from_bits<int32_t>(uint32_t bits) {
  return static_cast<int32_t>(bits);
}

template <class T>
STDC_DEVICE float low_of(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word & 0xffffu)});
}
template <class T>
STDC_DEVICE float high_of(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word >> 16)});
}

}  // namespace gpu
}  // namespace stdc
