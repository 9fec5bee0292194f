// Kernels that test csrc/emulator: one for each primitive, and a matrix product into which bugs can be planted. Built as
// a library for tests/backends/cuda/test_simt.py, and as a program to run all of it with sanitizers.
#include <stdio.h>
#include <stdlib.h>

#include "../../csrc/cuda/launch.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kSize = 64;                        // rows, columns and depth of the product
constexpr int kTile = 32, kChunk = 16;           // of a block; numbers of the depth at once
constexpr uint32_t kPitch = 2 * kChunk + 16;     // bytes of a row in shared memory
constexpr uint32_t kStage = 2 * kTile * kPitch;  // rows of a and of b

struct Case {
  const void* in;
  void* out;
  int bug;
};

// What a test can plant, by the names in test_simt.py.
enum Bug {
  kNone,
  kNoBarrier,
  kNoWait,
  kGlobal,
  kShared,
  kDiverge,
  kBranch,
  kEarlyStore,
  kNoGridWait,
  kInFlight,
  kMisaligned,
  kSameOutput,
  kEarlyExit,
  kNoFence,
  kFenceOfOne,
  kNoAtomic,
  kEarlyLoad,
  kMixedBarriers,
  kTwiceInFlight,
  kCopySource,
  kWeightStore,
  kMasks,
  kThrow
};

template <class T>
STDC_KERNEL(32, 1) multiply_fragments(const STDC_CONSTANT Case p) {
  const uint32_t* const in = static_cast<const uint32_t*>(p.in) + lane_id() * 10;
  uint32_t a[4];
  float c[4];
  for (int i = 0; i < 4; ++i) a[i] = load(in + i);
  for (int i = 0; i < 4; ++i) c[i] = load(reinterpret_cast<const float*>(in) + 6 + i);
  mma<T>(c, a, load(in + 4), load(in + 5));
  for (int i = 0; i < 4; ++i) store(static_cast<float*>(p.out) + lane_id() * 4 + i, c[i]);
}

template <bool negative>
STDC_KERNEL(32, 1) multiply_levels(const STDC_CONSTANT Case p) {
  const uint32_t* const in = static_cast<const uint32_t*>(p.in) + lane_id() * 10;
  uint32_t a[4];
  int32_t c[4];
  for (int i = 0; i < 4; ++i) a[i] = load(in + i);
  for (int i = 0; i < 4; ++i) c[i] = load(reinterpret_cast<const int32_t*>(in) + 6 + i);
  mma_levels<negative>(c, a, load(in + 4), load(in + 5));
  for (int i = 0; i < 4; ++i) store(static_cast<int32_t*>(p.out) + lane_id() * 4 + i, c[i]);
}

// Lane i reads the row that the last 32 words of the input say.
STDC_KERNEL(32, 1) read_matrices(const STDC_CONSTANT Case p) {
  const Vec* const in = static_cast<const Vec*>(p.in);
  shared_store(static_cast<uint32_t>(lane_id()) * 16, load(in + lane_id()));
  warp_sync();
  uint32_t r[4];
  ldmatrix_x4(r, 16 * load(reinterpret_cast<const uint32_t*>(in + 32) + lane_id()));
  for (int i = 0; i < 4; ++i) store(static_cast<uint32_t*>(p.out) + lane_id() * 4 + i, r[i]);
}

STDC_KERNEL(64, 1) shuffles(const STDC_CONSTANT Case p) {
  const float v = load(static_cast<const float*>(p.in) + thread_id());
  for (int i = 0; i < 5; ++i) {
    const int mask = p.bug == kMasks && lane_id() == 7 ? 1 : 1 << i;
    store(static_cast<float*>(p.out) + i * 64 + thread_id(), shuffle_xor(v, mask));
  }
}

// Two groups of copies; what is seen of both before, after the first and after the second has arrived.
STDC_KERNEL(32, 1) copies(const STDC_CONSTANT Case p) {
  const float* const in = static_cast<const float*>(p.in);
  const uint32_t at = static_cast<uint32_t>(lane_id()) * 16, second = at + 512;
  float* out = static_cast<float*>(p.out) + lane_id() * 6;
  shared_store(at, 1.0f);
  shared_store(second, 1.0f);
  cp_async(at, in + lane_id() * 4, 16);
  cp_async_commit();
  cp_async(second + 0, lane_id() == 3 ? nullptr : in + lane_id() * 4, lane_id() == 3 ? 0 : 4);
  cp_async_commit();
  store(out + 0, shared_load<float>(at));
  store(out + 1, shared_load<float>(second));
  cp_async_wait<1>();
  store(out + 2, shared_load<float>(at + 4));
  store(out + 3, shared_load<float>(second));
  cp_async_wait<0>();
  store(out + 4, shared_load<float>(second));
  store(out + 5, shared_load<float>(second + 4));
}

// Who runs it all: each thread writes where it is, and what the numbers of its block are.
STDC_KERNEL(64, 1) places(const STDC_CONSTANT Case p) {
  const Index b = block_id(), g = grid_size();
  int* const out = static_cast<int*>(p.out) + (((b.z * g.y + b.y) * g.x + b.x) * 64 + thread_id()) * 6;
  store(out, lane_id());
  store(out + 1, warp_id());
  store(out + 2, b.x);
  store(out + 3, b.y);
  store(out + 4, b.z);
  store(out + 5, static_cast<int>(multiply_high(0x89abcdefu, 0xfedcba98u) & 0x7fffffffu));
}

// Neighbours exchange through shared memory.
STDC_KERNEL(32, 1) exchange(const STDC_CONSTANT Case p) {
  const uint32_t lane = static_cast<uint32_t>(lane_id());
  shared_store(lane * 4, load(static_cast<const float*>(p.in) + lane));
  if (p.bug != kNoBarrier) warp_sync();
  store(static_cast<float*>(p.out) + lane, shared_load<float>((lane ^ 1) * 4));
}

// Only the first half of the lanes, or of the warps, comes to a barrier.
STDC_KERNEL(128, 1) branches(const STDC_CONSTANT Case p) {
  if (p.bug == kThrow) throw std::runtime_error("thrown inside");
  if (p.bug == kEarlyExit && thread_id() >= 96) return;
  if (p.bug == kBranch) {
    if (lane_id() < 16) block_sync();
  } else if (p.bug == kMixedBarriers) {
    if (lane_id() < 16)
      block_sync();
    else
      block_sync();
  } else {
    block_sync();
  }
  if (p.bug == kDiverge && lane_id() == 31)
    shuffle_xor(1.0f, 1);
  else
    warp_sync();
}

// The sum of a number of each block: the last block that arrives adds them up.
STDC_KERNEL(32, 1) sum_of_blocks(const STDC_CONSTANT Case p) {
  float* const out = static_cast<float*>(p.out);  // sum, count, then 32 partial sums of each block
  int* const count = reinterpret_cast<int*>(out + 1);
  const int block = block_id().x, blocks = grid_size().x;
  store(out + 2 + block * 32 + lane_id(), load(static_cast<const float*>(p.in) + block * 32 + lane_id()));
  if (p.bug == kFenceOfOne && thread_id() == 0) fence();
  block_sync();
  if (thread_id() == 0) {
    if (p.bug != kNoFence && p.bug != kFenceOfOne) fence();
    const int before = p.bug == kNoAtomic ? blocks - 1 : atomic_add(count, 1);
    fence();
    shared_store(0, before);
  }
  block_sync();
  if (shared_load<int>(0) != blocks - 1) return;
  float sum = 0;
  for (int i = 0; i < blocks; ++i) sum += load(out + 2 + i * 32 + lane_id());
  for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_id() == 0) store(out, sum);
}

// One stage of the product: 16 of the depth of 32 rows of a and of b.
STDC_DEVICE void copy_stage(const half_t* a, const half_t* b, int chunk, uint32_t at, const Case& p) {
  const int row = thread_id() / 2 % kTile, part = thread_id() % 2;
  const half_t* from = thread_id() < 2 * kTile ? a : b;
  from += row * kSize + chunk * kChunk + part * 8;
  if (p.bug == kGlobal && chunk == kSize / kChunk - 1) from += 8;
  if (p.bug == kCopySource) from += 1;
  cp_async(at + static_cast<uint32_t>(thread_id() / 2) * kPitch + static_cast<uint32_t>(part) * 16, from, 16);
}

// out = a b' in float32, of float16; blocks of 32x32 in four warps of 16x16, with two stages of copies.
STDC_KERNEL(128, 1) product(const STDC_CONSTANT Case p) {
  Index block = block_id();
  if (p.bug == kSameOutput) block.x = 0;
  const half_t* const a = static_cast<const half_t*>(p.in) + block.y * kTile * kSize;
  const half_t* const b = static_cast<const half_t*>(p.in) + (kSize + block.x * kTile) * kSize;
  float* const out = static_cast<float*>(p.out) + block.y * kTile * kSize + block.x * kTile;
  const int warp_row = warp_id() / 2 * 16, warp_column = warp_id() % 2 * 16;
  const uint32_t lane = static_cast<uint32_t>(lane_id());
  launch_dependents<kFirst>();
  if (p.bug == kEarlyStore) store(out + thread_id(), 0.0f);
  if (p.bug == kWeightStore) store(const_cast<half_t*>(a), half_t{0});
  if (p.bug == kEarlyLoad) load(a);
  if (p.bug != kNoGridWait) grid_wait();

  float c[2][4] = {};
  copy_stage(a, b, 0, 0, p);
  cp_async_commit();
  for (int chunk = 0; chunk < kSize / kChunk; ++chunk) {
    const uint32_t stage = static_cast<uint32_t>(chunk % 2) * kStage;
    if (chunk + 1 < kSize / kChunk) copy_stage(a, b, chunk + 1, kStage - stage, p);
    if (p.bug == kTwiceInFlight && chunk == 0) copy_stage(a, b, chunk + 1, kStage - stage, p);
    cp_async_commit();
    if (p.bug == kNoWait)
      cp_async_wait<2>();
    else
      cp_async_wait<1>();
    block_sync();
    uint32_t x[4], y[4];
    const uint32_t column = (lane / 16) * 16, row = lane % 16;
    const uint32_t shift = p.bug == kMisaligned && lane == 9 ? 8 : 0;
    ldmatrix_x4(x, stage + (static_cast<uint32_t>(warp_row) + row) * kPitch + column + shift);
    ldmatrix_x4(y, stage + (static_cast<uint32_t>(kTile + warp_column) + lane / 16 * 8 + lane % 8) * kPitch +
                       (lane / 8 % 2) * 16);
    mma<half_t>(c[0], x, y[0], y[1]);
    mma<half_t>(c[1], x, y[2], y[3]);
    if (p.bug != kNoBarrier) block_sync();
  }
  if (p.bug == kInFlight) copy_stage(a, b, 0, 0, p);
  for (int part = 0; part < 2; ++part) {
    float* const to = out + (warp_row + lane_id() / 4) * kSize + warp_column + part * 8 + lane_id() % 4 * 2;
    store(to, c[part][0]);
    store(to + 1, c[part][1]);
    store(to + 8 * kSize, c[part][2]);
    store(to + 8 * kSize + 1, c[part][3]);
  }
}

// A load that no list of tensors forbids.
STDC_KERNEL(32, 1) overrun(const STDC_CONSTANT Case p) {
  store(static_cast<float*>(p.out), load(static_cast<const float*>(p.in) + 32));
}

void run_case(const std::string& name, const Case& p, bool dependent) {
  const Stream stream{nullptr, dependent};
  if (name == "mma_half") return launch<Case>(multiply_fragments<half_t>, "mma_half", {1, 1, 1}, 32, 0, p, stream);
  if (name == "mma_bf16") return launch<Case>(multiply_fragments<bf16_t>, "mma_bf16", {1, 1, 1}, 32, 0, p, stream);
  if (name == "mma_s8") return launch<Case>(multiply_levels<true>, "mma_levels", {1, 1, 1}, 32, 0, p, stream);
  if (name == "mma_u8") return launch<Case>(multiply_levels<false>, "mma_levels", {1, 1, 1}, 32, 0, p, stream);
  if (name == "ldmatrix") return launch<Case>(read_matrices, "ldmatrix", {1, 1, 1}, 32, 512, p, stream);
  if (name == "shuffles") return launch<Case>(shuffles, "shuffles", {1, 1, 1}, 64, 0, p, stream);
  if (name == "copies") return launch<Case>(copies, "copies", {1, 1, 1}, 32, 1024, p, stream);
  if (name == "places") return launch<Case>(places, "places", {3, 2, 2}, 64, 0, p, stream);
  if (name == "exchange") return launch<Case>(exchange, "exchange", {1, 1, 1}, 32, 128, p, stream);
  if (name == "branches") return launch<Case>(branches, "branches", {2, 1, 1}, 128, 0, p, stream);
  if (name == "sum_of_blocks") return launch<Case>(sum_of_blocks, "sum_of_blocks", {5, 1, 1}, 32, 4, p, stream);
  if (name == "overrun") return launch<Case>(overrun, "overrun", {1, 1, 1}, 32, 0, p, stream);
  if (name != "product") throw std::runtime_error("no case " + name);
  const int shared = static_cast<int>(2 * kStage) - (p.bug == kShared ? 32 : 0);
  launch<Case>(product, "product", {kSize / kTile, kSize / kTile, 1}, 128, shared, p, stream);
}

template <class T>
T rounded(float x) {
  return T{static_cast<uint16_t>(pack<T>(x, 0))};
}

}  // namespace
}  // namespace gpu
}  // namespace stdc

namespace gpu = stdc::gpu;

struct Settings {
  int schedule, races, poison, block_races, dependent, bug;
  uint64_t seed;
  size_t in_bytes, out_bytes;  // zero: global accesses are not checked
  int in_is_data;
};

extern "C" {

// Runs a case; 0, or 1 with why it failed in the message.
int simt_case(const char* name, const void* in, void* out, const Settings* s, char* message, size_t bytes) {
  try {
    gpu::emulator::set_schedule(static_cast<gpu::emulator::Schedule>(s->schedule), s->seed);
    gpu::emulator::options().races = s->races;
    gpu::emulator::options().poison = s->poison;
    gpu::emulator::options().block_races = s->block_races;
    std::vector<gpu::emulator::Range> ranges;
    const auto kind = s->in_is_data ? gpu::emulator::Memory::data : gpu::emulator::Memory::weight;
    if (s->in_bytes) ranges = {{in, s->in_bytes, kind}, {out, s->out_bytes, gpu::emulator::Memory::data}};
    gpu::emulator::set_memory(ranges);
    gpu::run_case(name, {in, out, s->bug}, s->dependent);
    return 0;
  } catch (const std::exception& e) {
    snprintf(message, bytes, "%s", e.what());
    return 1;
  }
}

void simt_statistics(int64_t (&to)[7]) {
  const gpu::emulator::Statistics& s = gpu::emulator::statistics();
  const int64_t all[] = {s.launches, s.blocks, s.mma, s.ldmatrix, s.barriers, s.switches, s.copied_bytes};
  memcpy(to, all, sizeof(all));
  gpu::emulator::reset_statistics();
}

// Numbers of 16 bits to float32 and back.
void simt_to_float(const uint16_t* x, float* y, size_t n, int half) {
  for (size_t i = 0; i < n; ++i) y[i] = half ? gpu::to_float(gpu::half_t{x[i]}) : gpu::to_float(gpu::bf16_t{x[i]});
}
void simt_round(const float* x, uint16_t* y, size_t n, int half) {
  for (size_t i = 0; i < n; ++i)
    y[i] = half ? gpu::rounded<gpu::half_t>(x[i]).bits : gpu::rounded<gpu::bf16_t>(x[i]).bits;
}
// As on CPUs without conversions.
void simt_plain(const uint16_t* x, float* y, const float* z, uint16_t* w, size_t n, size_t m) {
  for (size_t i = 0; i < n; ++i) y[i] = gpu::emulator::float_of_half(x[i]);
  for (size_t i = 0; i < m; ++i) w[i] = gpu::emulator::half_of_float(z[i]);
}

}  // extern "C"

// Without arguments: correct and broken products in turns, under each schedule. `overrun`: reads past the end.
int main(int argc, char**) {
  char message[4096];
  Settings s{};
  s.poison = 1;
  if (argc > 1) {
    void* const in = malloc(128);
    memset(in, 0, 128);
    float out = 0;
    return simt_case("overrun", in, &out, &s, message, sizeof(message));
  }
  std::vector<gpu::Vec> in(2 * gpu::kSize * gpu::kSize / 8);
  for (size_t i = 0; i < in.size() * 8; ++i)
    reinterpret_cast<gpu::half_t*>(in.data())[i] = gpu::rounded<gpu::half_t>(static_cast<float>(i * 37 % 101) / 50 - 1);
  std::vector<float> first, out(gpu::kSize * gpu::kSize);
  s.races = s.dependent = 1;
  s.in_bytes = in.size() * 16;
  s.out_bytes = out.size() * 4;
  int caught = 0;
  for (s.schedule = 0; s.schedule < 4; ++s.schedule) {
    for (int bug = 0; bug <= gpu::kThrow; ++bug) {
      s.bug = bug;
      caught += simt_case("product", in.data(), out.data(), &s, message, sizeof(message));
      s.dependent = 0;
      caught += simt_case("branches", in.data(), out.data(), &s, message, sizeof(message));
      s.dependent = 1;
      s.bug = 0;
      std::fill(out.begin(), out.end(), 0.0f);
      if (simt_case("product", in.data(), out.data(), &s, message, sizeof(message))) {
        printf("%s\n", message);
        return 1;
      }
      if (first.empty()) first = out;
      if (first != out) return 1;
    }
  }
  printf("caught %d\n", caught);
  return 0;
}
