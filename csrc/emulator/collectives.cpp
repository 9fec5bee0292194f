// What the lanes of a warp do together: shuffles, ldmatrix and mma. Each lane puts its operands where the last one,
// which does the work, finds them in rows, and takes its results itself.
#include "state.h"

namespace stdc {
namespace gpu {
namespace emulator {
namespace {

typedef float Eight __attribute__((vector_size(32)));

Warp& mine() { return warps[static_cast<size_t>(view.thread->warp)]; }

// c += a b, of 16x16 and 16x8, one product after the other.
void multiply_all(Warp& w) {
  constexpr int kRows = 4;  // as many as fit into registers
  for (int from = 0; from < 16; from += kRows) {
    Eight sum[kRows];
    memcpy(sum, w.c[from], sizeof(sum));
    for (int k = 0; k < 16; ++k) {
      Eight b;
      memcpy(&b, w.b[k], sizeof(b));
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum[i] += b * w.a[from + i][k];
    }
    memcpy(w.c[from], sum, sizeof(sum));
  }
}

// NOTE: sums are modulo 2^32, as the device's are without .satfinite.
void multiply_all_levels(Warp& w) {
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      int32_t sum = 0;  // less than 32 * 2^15
      for (int k = 0; k < 32; ++k) sum += w.a8[row][k] * w.b8[col][k];
      w.c8[row][col] = static_cast<int32_t>(static_cast<uint32_t>(w.c8[row][col]) + static_cast<uint32_t>(sum));
    }
  }
}

// Puts a lane's a and b where they belong.
template <class T>
void put(Warp& w, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int row, int col) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float v[12];
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    v[2 * i] = low_of<T>(words[i]);
    v[2 * i + 1] = high_of<T>(words[i]);
  }
  memcpy(&w.a[row][col], v, 8);
  memcpy(&w.a[row + 8][col], v + 2, 8);
  memcpy(&w.a[row][col + 8], v + 4, 8);
  memcpy(&w.a[row + 8][col + 8], v + 6, 8);
  w.b[col][row] = v[8];
  w.b[col + 1][row] = v[9];
  w.b[col + 8][row] = v[10];
  w.b[col + 9][row] = v[11];
}

void spread(int16_t* to, uint32_t word, bool negative) {
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = word >> (8 * i) & 0xffu;
    to[i] = static_cast<int16_t>(negative ? static_cast<int8_t>(byte) : static_cast<int>(byte));
  }
}

}  // namespace

void warp_barrier(Site site) {
  if (!arrive(ThreadState::warp_sync, site)) return;
  ++mine().step;
  leave();
}

float shuffle(float v, int mask, Site site) {
  Warp& w = mine();
  const int lane = view.thread->lane;
  if (mask < 0 || mask > 31) fail("shuffle_xor with mask " + std::to_string(mask), site);
  w.value[lane] = v;
  if (arrive(ThreadState::shuffle, site, mask)) {
    float turned[32];
    for (int i = 0; i < 32; ++i) turned[i] = w.value[i ^ mask];
    for (int i = 0; i < 32; ++i) memcpy(w.result[i], &turned[i], 4);
    ++w.step;
    leave();
  }
  float result;
  memcpy(&result, w.result[lane], 4);
  return result;
}

void read_matrices(uint32_t (&r)[4], uint32_t at, Site site) {
  Warp& w = mine();
  const Thread& me = *view.thread;
  check_shared(at, 16, 16, Access::ldmatrix, site);
  w.address[me.lane] = at;
  if (arrive(ThreadState::ldmatrix, site)) {
    for (int i = 0; i < 32; ++i) {
      read_row(*fibers[static_cast<size_t>(me.warp * 32 + i)], w.address[i], site);
      // Row i % 8 of matrix i / 8 is two numbers each for four lanes.
      uint32_t row[4];
      memcpy(row, view.shared + w.address[i], 16);
      for (int j = 0; j < 4; ++j) w.result[i % 8 * 4 + j][i / 8] = row[j];
    }
    ++counts.ldmatrix;
    w.written = true;
    leave();
  }
  memcpy(r, w.result[me.lane], 16);
}

void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool half, Site site) {
  Warp& w = mine();
  const int lane = view.thread->lane, row = lane / 4, col = lane % 4 * 2;
  if (half)
    put<half_t>(w, a, b0, b1, row, col);
  else
    put<bf16_t>(w, a, b0, b1, row, col);
  memcpy(&w.c[row][col], c, 8);
  memcpy(&w.c[row + 8][col], c + 2, 8);
  if (arrive(ThreadState::mma, site, half)) {
    multiply_all(w);
    w.written = true;
    ++counts.mma;
    leave();
  }
  memcpy(c, &w.c[row][col], 8);
  memcpy(c + 2, &w.c[row + 8][col], 8);
}

void multiply_levels(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool negative, Site site) {
  Warp& w = mine();
  const int lane = view.thread->lane, row = lane / 4, quad = lane % 4;
  spread(&w.a8[row][quad * 4], a[0], negative);
  spread(&w.a8[row + 8][quad * 4], a[1], negative);
  spread(&w.a8[row][quad * 4 + 16], a[2], negative);
  spread(&w.a8[row + 8][quad * 4 + 16], a[3], negative);
  spread(&w.b8[row][quad * 4], b0, true);
  spread(&w.b8[row][quad * 4 + 16], b1, true);
  memcpy(&w.c8[row][quad * 2], c, 8);
  memcpy(&w.c8[row + 8][quad * 2], c + 2, 8);
  if (arrive(ThreadState::mma_levels, site, negative)) {
    multiply_all_levels(w);
    w.written = true;
    ++counts.mma;
    leave();
  }
  memcpy(c, &w.c8[row][quad * 2], 8);
  memcpy(c + 2, &w.c8[row + 8][quad * 2], 8);
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
