// The primitives of csrc/cuda/primitives.cuh on the CPU: kernels run with one fiber per thread, and every access to
// shared and global memory is watched. What is wrong ends the launch with a std::runtime_error that says where.
//
// Clusters run one after the other, and the blocks of one at once, so that a kernel must not wait for a block of another
// in a loop. One launch at a time.
#pragma once

#include <math.h>
#include <string.h>

#include <type_traits>
#include <vector>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define STDC_HIDDEN __attribute__((visibility("hidden")))
#else
#define STDC_HIDDEN
#endif

// Where a primitive was called: arguments that its callers leave out. NOTE: in a struct they would say where the
// primitive is.
#define STDC_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace stdc {
namespace gpu {

inline float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

namespace emulator {

// Who runs next, also in which order blocks run. round_robin: threads in turns, rendezvous by rendezvous. forward and
// backward: the lowest or highest warp as far as it comes. random: from the seed.
enum class Schedule { round_robin, forward, backward, random };

struct Options {
  Schedule schedule = Schedule::forward;
  uint64_t seed = 1;
  bool races = true;         // watch for races in shared memory
  bool poison = true;        // shared memory starts as NaN, else as zeros
  bool block_races = false;  // watch for blocks of a launch that use the same places of the ranges of set_memory
};

struct Statistics {
  int64_t launches = 0, blocks = 0, mma = 0, wgmma = 0, ldmatrix = 0, barriers = 0, switches = 0;
  int64_t copied_bytes = 0;  // by cp_async, without the zeros, and by bulk_copy
};

// Memory that kernels may use: weights are never written and may be read before grid_wait.
enum class Memory { weight, data };
struct Range {
  const void* base;
  size_t bytes;
  Memory kind;
};

// Options for the next launches.
STDC_HIDDEN Options& options();
// Sets options().schedule and options().seed.
STDC_HIDDEN void set_schedule(Schedule schedule, uint64_t seed = 1);
// What was done since the last reset_statistics().
STDC_HIDDEN const Statistics& statistics();
STDC_HIDDEN void reset_statistics();
// All global memory of the next launches; with an empty list accesses are not checked.
STDC_HIDDEN void set_memory(std::vector<Range> ranges);

struct Site {
  const char* file;
  int line;
};
inline bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

// Of a cluster: its threads and warps are numbered block by block. `own` and `own_warp` are numbers in the block.
struct Thread {
  int id, lane, warp;
  int rank, own, own_warp;
  bool waited;  // was at grid_wait
};

// What the inline functions below need of the launch that runs.
struct View {
  Thread* thread;
  Index block, grid;
  unsigned char* shared;
};
extern STDC_HIDDEN View view;

enum class Access : uint8_t { load, store, ldmatrix, copy, weight, atomic, bulk, wgmma, mbarrier };

// Each ends the launch with an error where the access is not allowed.
STDC_HIDDEN void touch_shared(uint32_t at, uint32_t bytes, uint32_t align, Access access, Site site);
STDC_HIDDEN void touch_global(const void* p, size_t bytes, size_t align, Access access, Site site);

STDC_HIDDEN void barrier(Site site);
STDC_HIDDEN void warp_barrier(Site site);
STDC_HIDDEN float shuffle(float v, int mask, Site site);
STDC_HIDDEN void read_matrices(uint32_t (&r)[4], uint32_t at, Site site);
STDC_HIDDEN void copy_start(uint32_t at, const void* from, int bytes, Site site);
STDC_HIDDEN void copy_commit();
STDC_HIDDEN void copy_wait(int pending);
STDC_HIDDEN void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool half, Site site);
STDC_HIDDEN void multiply_levels(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool negative,
                                 Site site);
STDC_HIDDEN void wait_for_grid();
STDC_HIDDEN void fence();

STDC_HIDDEN void run(void (*call)(void*), void* callable, const char* name, Index grid, int threads, int shared,
                     bool dependent, int cluster);

// Runs `callable` once for each thread of the grid.
template <class F>
void run(F&& callable, const char* name, Index grid, int threads, int shared, bool dependent, int cluster = 1) {
  using Callable = std::remove_reference_t<F>;
  run([](void* f) { (*static_cast<Callable*>(f))(); }, const_cast<void*>(static_cast<const void*>(&callable)), name,
      grid, threads, shared, dependent, cluster);
}

// Conversions in integers, for CPUs that have none.
inline float float_of_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  // Choices, not branches, so that many are converted at once. Subnormals: digits times 2^-24.
  const float small = static_cast<float>(static_cast<int32_t>(rest)) * 5.9604644775390625e-8f;
  uint32_t word = (rest << 13) + (112u << 23);
  word = rest < 0x400u ? as_bits(small) : word;
  word += rest >= 0x7c00u ? 112u << 23 : 0;
  word |= sign | (rest > 0x7c00u ? 0x400000u : 0);
  return as_float(word);
}
inline uint16_t half_of_float(float x) {
  uint32_t word = as_bits(x);
  const uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000u);
  word &= 0x7fffffffu;
  if (word > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (word >> 13 & 0x3ffu));
  if (word >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (word < 0x33000000u) return sign;  // less than half of the smallest
  const int exponent = static_cast<int>(word >> 23);
  uint32_t digits = word, shift = 13;
  if (exponent < 113) {
    digits = (word & 0x7fffffu) | 0x800000u;
    shift = static_cast<uint32_t>(126 - exponent);
  } else {
    digits -= 112u << 23;
  }
  const uint32_t kept = digits >> shift, dropped = digits & ((1u << shift) - 1), middle = 1u << (shift - 1);
  return static_cast<uint16_t>(sign | (kept + (dropped > middle || (dropped == middle && (kept & 1)))));
}

}  // namespace emulator

// The functions of primitives.cuh; see there.
inline int thread_id() { return emulator::view.thread->own; }
inline int lane_id() { return emulator::view.thread->lane; }
inline int warp_id() { return emulator::view.thread->own_warp; }
inline Index block_id() { return emulator::view.block; }
inline Index grid_size() { return emulator::view.grid; }
inline void block_sync(STDC_HERE) { emulator::barrier({file, line}); }
inline void warp_sync(STDC_HERE) { emulator::warp_barrier({file, line}); }
inline float shuffle_xor(float v, int mask, STDC_HERE) { return emulator::shuffle(v, mask, {file, line}); }

template <class V>
inline V shared_load(uint32_t at, STDC_HERE) {
  static_assert(alignof(V) >= 2, "two bytes are watched as one");
  emulator::touch_shared(at, sizeof(V), alignof(V), emulator::Access::load, {file, line});
  V v;
  memcpy(&v, emulator::view.shared + at, sizeof(V));
  return v;
}
template <class V>
inline void shared_store(uint32_t at, V v, STDC_HERE) {
  static_assert(alignof(V) >= 2, "two bytes are watched as one");
  emulator::touch_shared(at, sizeof(V), alignof(V), emulator::Access::store, {file, line});
  memcpy(emulator::view.shared + at, &v, sizeof(V));
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t at, STDC_HERE) { emulator::read_matrices(r, at, {file, line}); }

inline void cp_async(uint32_t at, const void* from, int bytes, STDC_HERE) {
  emulator::copy_start(at, from, bytes, {file, line});
}
inline void cp_async_commit() { emulator::copy_commit(); }
template <int pending>
inline void cp_async_wait() {
  static_assert(pending >= 0, "groups");
  emulator::copy_wait(pending);
}

template <class T>
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, STDC_HERE) {
  emulator::multiply(c, a, b0, b1, is_half<T>::value, {file, line});
}
template <bool negative>
inline void mma_levels(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, STDC_HERE) {
  emulator::multiply_levels(c, a, b0, b1, negative, {file, line});
}

template <class V>
inline V load(const V* p, STDC_HERE) {
  emulator::touch_global(p, sizeof(V), alignof(V), emulator::Access::load, {file, line});
  return *p;
}
template <class V>
inline V load_weight(const V* p, STDC_HERE) {
  emulator::touch_global(p, sizeof(V), alignof(V), emulator::Access::weight, {file, line});
  return *p;
}
inline float load_weight(const float* p, STDC_HERE) { return load_weight<float>(p, file, line); }
template <class V>
inline V load_early(const V* p, STDC_HERE) {
  return load_weight(p, file, line);
}
template <class V>
inline void store(V* p, V v, STDC_HERE) {
  emulator::touch_global(p, sizeof(V), alignof(V), emulator::Access::store, {file, line});
  *p = v;
}
inline Vec load_fresh(const Vec* p, STDC_HERE) { return load(p, file, line); }
inline int atomic_add(int* p, int v, STDC_HERE) {
  emulator::touch_global(p, sizeof(int), alignof(int), emulator::Access::atomic, {file, line});
  const int before = *p;
  *p = static_cast<int>(static_cast<unsigned>(before) + static_cast<unsigned>(v));
  return before;
}
inline void fence() { emulator::fence(); }

template <Place>
inline void launch_dependents() {}
inline void grid_wait() { emulator::wait_for_grid(); }

inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline float exponential(float x) { return expf(x); }
inline float to_float(half_t x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return emulator::float_of_half(x.bits);
#endif
}
inline float to_float(bf16_t x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
inline void round_to(half_t& y, float x) {
#if defined(__F16C__)
  y.bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  y.bits = emulator::half_of_float(x);
#endif
}
inline void round_to(bf16_t& y, float x) {
  const uint32_t word = as_bits(x);
  const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
  y.bits = static_cast<uint16_t>(nan ? word >> 16 | 0x40u : (word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}
template <class T>
inline uint32_t pack(float low, float high) {
  T l, h;
  round_to(l, low);
  round_to(h, high);
  return static_cast<uint32_t>(h.bits) << 16 | l.bits;
}

}  // namespace gpu
}  // namespace stdc
