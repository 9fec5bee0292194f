// Pixels of a convolution in shared memory: what a block needs to know of its inputs, where it is among them, the
// copies of a chunk's pixels, and what a prologue does to them there.
#pragma once

#include "gate.cuh"
#include "gpu.h"
#include "primitives.cuh"

namespace stdc {
namespace gpu {

// Division by a number that is known at launch, of numbers below 65,536.
struct Divisor {
  int by;
  uint32_t magic;
};
inline Divisor divisor(int by) { return {by, by == 1 ? 0u : static_cast<uint32_t>(0xffffffffu / by + 1)}; }
STDC_DEVICE int divide(int n, const Divisor& d) {
  return d.by == 1 ? n : static_cast<int>(multiply_high(static_cast<uint32_t>(n), d.magic));
}

// Of levels `channels` and `pitch` count pairs.
struct Input {
  const void* x;  // [images, height, width, channels of pitch]
  int channels, units, pitch;  // units: channels / 16, rounded up
  int aligned, whole;          // all pixels to 16 bytes; these, and their channels are whole vectors
  int negative;                // of levels: whether they are signed
};

// What products need to know of a convolution, the same for all blocks.
struct Source {
  Input first, second;
  const void* weight;  // fragments [units, taps, blocks] of the first input, then of the second, and one step more
  int blocks;          // of 16 output channels
  int height, width, kernel;
  int chunk;           // units of a chunk
  int first_chunks, chunks;
  int halo_height;
  Divisor halo, vectors;  // pixels of a row of the halo; vectors of eight channels of a chunk
  int step;            // pixels that the threads have at once
  int pixel;           // bytes from pixel to pixel in shared memory
  int buffers, buffer; // of chunks of pixels, and bytes of one
  const float* scale;
  const void* add;
  int scale_pitch, add_kind, add_pitch, add_aligned;
  int beside;          // bytes from a pixel to that of the map that is added
  int changes;         // whether there is a prologue
  uint32_t change;     // where all scales are in shared memory, then all vectors that are added
  int end;             // of shared memory that the products need
  int gated;           // whether scales are what the gate gives
  Gate gate;
  int barriers;        // of wgmma, where they are in shared memory
  int cluster;         // of wgmma: blocks beside each other that share one stream of weights
};

// Eight channels from memory, of which those from `count` on are zero; and to memory.
template <class T, bool weights = false>
STDC_DEVICE Vec load_some(const T* p, int count) {
  Vec v{};
  STDC_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i >= count) continue;
    const uint16_t x = weights ? load_weight(&p[i].bits) : load(&p[i].bits);
    v.word[i / 2] |= static_cast<uint32_t>(x) << (i % 2 * 16);
  }
  return v;
}
template <class T>
STDC_DEVICE void store_vector(T* to, const Vec& v, int count, bool aligned) {
  if (aligned && count >= 8) {
    store(reinterpret_cast<Vec*>(to), v);
    return;
  }
  STDC_UNROLL
  for (int i = 0; i < 8; ++i)
    if (i < count) store(&to[i].bits, static_cast<uint16_t>(v.word[i / 2] >> (i % 2 * 16)));
}

// Of one block.
struct Where {
  int64_t image;
  int row, column;        // of the halo's first pixel, in the input
  int first, last;        // chunks
  int block;              // first of its blocks of 16 output channels
  int64_t set;            // weights before those that it uses, in units
};

// A place among the products: a chunk, and what is left of it, in units of input channels.
struct Cursor {
  int chunk, width, left;
  uint32_t pixels;  // where the chunk's are in shared memory, and the channels of the step in each
  int slot;

  STDC_DEVICE void enter(const Source& s, int number) {
    chunk = number;
    const bool other = number >= s.first_chunks;
    const int begin = (other ? number - s.first_chunks : number) * s.chunk;
    const int rest = (other ? s.second.units : s.first.units) - begin;
    left = width = rest < s.chunk ? rest : s.chunk;
  }
  STDC_DEVICE void begin(const Source& s, const Where& w, uint32_t at) {
    enter(s, w.first);
    pixels = at;
    slot = 0;
  }
  STDC_DEVICE bool fresh() const { return left == width; }
  // To the next step, of so many units of input channels. Steps of one unit have no branch here, so that this goes among
  // the products.
  STDC_DEVICE void advance(const Source& s, int depth, uint32_t first_pixels) {
    if (depth > 1 && left > depth) {
      left -= depth;
      pixels += depth * 32;
      return;
    }
    Cursor next;
    next.enter(s, chunk + 1);
    next.slot = slot + 1 == s.buffers ? 0 : slot + 1;
    next.pixels = first_pixels + next.slot * s.buffer;
    const bool ends = left <= depth;
    chunk = ends ? next.chunk : chunk;
    width = ends ? next.width : width;
    left = ends ? next.left : left - depth;
    pixels = ends ? next.pixels : pixels + depth * 32;
    slot = ends ? next.slot : slot;
  }
};

// How threads share the pixels of a chunk: each has one vector of eight channels of every `step`-th pixel, and goes
// through them.
template <class F>
struct Share {
  int channel, count;        // the vector's first channel, and how many of its eight exist
  int pixel, step;           // in the halo
  int y, z, rows, columns;   // in the input; step = rows * halo.by + columns
  uint32_t at;               // in shared memory

  STDC_DEVICE Share(const Source& s, const Where& w, const Cursor& c) {
    const int vectors = 2 * c.width, thread = thread_id();
    const bool other = c.chunk >= s.first_chunks;
    if (c.width == s.chunk) {
      step = s.step;
      pixel = divide(thread, s.vectors);
    } else {  // the last chunk of an input
      step = F::kThreads / vectors;
      pixel = thread / vectors;
    }
    const int vector = thread - pixel * vectors;
    channel = (other ? c.chunk - s.first_chunks : c.chunk) * s.chunk * 16 + vector * 8;
    const int left = (other ? s.second.channels : s.first.channels) - channel;
    count = left < 0 ? 0 : left > 8 ? 8 : left;
    if (pixel >= step) pixel = s.halo_height * s.halo.by;  // nothing
    rows = divide(step, s.halo);
    columns = step - rows * s.halo.by;
    const int row = divide(pixel, s.halo);
    y = w.row + row;
    z = w.column + pixel - row * s.halo.by;
    at = c.pixels + pixel * s.pixel + vector * 16;
  }
  STDC_DEVICE bool more(const Source& s) const { return pixel < s.halo_height * s.halo.by; }
  STDC_DEVICE bool inside(const Source& s) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(s.height) &&
           static_cast<unsigned>(z) < static_cast<unsigned>(s.width) && count > 0;
  }
  // True where the next pixel is in a row more than usual.
  STDC_DEVICE bool next(const Source& s, const Where& w) {
    pixel += step;
    at += step * s.pixel;
    y += rows;
    z += columns;
    const bool wraps = z >= w.column + s.halo.by;
    if (wraps) {
      z -= s.halo.by;
      ++y;
    }
    return wraps;
  }
};

// Starts the copies of the weights of `units` units, of some blocks of 16 output channels; those that do not exist are
// zero.
template <int kThreads, int kChannels>
STDC_DEVICE void fetch_weights(const void* weight, int units, int blocks, int first_block, uint32_t at) {
  constexpr int kVectors = kChannels * 2;  // of 16 bytes, a unit
  STDC_ROLLED
  for (int v = thread_id(); v < units * kVectors; v += kThreads) {
    const int unit = v / kVectors, block = first_block + v % kVectors / 32;
    const char* from = static_cast<const char*>(weight) + (unit * blocks + block) * 512 + v % 32 * 16;
    const bool exists = block < blocks;
    cp_async(at + v * 16, exists ? from : static_cast<const char*>(weight), exists ? 16 : 0);
  }
}

// Starts the copy of eight channels, of which those from `count` on are zero.
template <class T>
STDC_DEVICE void fetch_vector(uint32_t to, const T* base, int offset, int count, bool aligned) {
  if (aligned)
    cp_async(to, base + offset, 2 * count);
  else
    shared_store(to, load_some(base + offset, count));
}

// Starts the copies of a chunk's pixels, and of the map that is added to them; outside of the image they are zero.
template <class T, class F>
STDC_DEVICE void fetch_pixels(const Source& s, const Where& w, const Cursor& c, Share<F> share) {
  const bool other = c.chunk >= s.first_chunks;
  const Input in = other ? s.second : s.first;
  const int64_t area = static_cast<int64_t>(s.height) * s.width;
  const T* x = static_cast<const T*>(in.x) + w.image * area * in.pitch;
  const bool adds = s.add_kind == kMap && !other;
  if (in.whole && !adds) {  // without a branch in the loop
    // In bytes from the pixel above and before the first, where a halo may begin: below 2^32, as numbers of an image
    // are below 2^31.
    const uint32_t column = in.pitch * 2, row = s.width * column;
    const char* const base = reinterpret_cast<const char*>(x) - row - column;
    uint32_t offset = (share.y + 1u) * row + (share.z + 1u) * column + share.channel * 2u;
    const uint32_t usual = share.rows * row + share.columns * column, more = row - s.halo.by * column;
    const unsigned height = share.count > 0 ? s.height : 0;  // of vectors that do not exist nothing is inside
    STDC_ROLLED
    while (share.more(s)) {
      const bool inside =
          static_cast<unsigned>(share.y) < height && static_cast<unsigned>(share.z) < static_cast<unsigned>(s.width);
      cp_async(share.at, base + offset, inside ? 16 : 0);
      offset += usual;
      if (share.next(s, w)) offset += more;
    }
    return;
  }
  const T* map = static_cast<const T*>(s.add) + (adds ? w.image * area * s.add_pitch : 0);
  STDC_ROLLED
  for (; share.more(s); share.next(s, w)) {
    const bool inside = share.inside(s);
    const int place = inside ? share.y * s.width + share.z : 0, channel = inside ? share.channel : 0;
    const int count = inside ? share.count : 0;
    fetch_vector(share.at, x, place * in.pitch + channel, count, in.aligned);
    if (adds) fetch_vector(share.at + s.beside, map, place * s.add_pitch + channel, count, s.add_aligned);
  }
}

// What a prologue does to a thread's eight channels of a chunk.
struct Change {
  float scale[8], add[8];
};
// Brings all scales and added vectors to shared memory, while the first pixels are on their way. `pending` groups of
// copies are later than the gate's weights; 0: there is no gate. Ends with a barrier.
template <class T, class F, int pending>
STDC_DEVICE void gather_changes(const Source& s, const Where& w) {
  const int channels = s.first.units * 16;
  const bool gated = pending > 0 && s.gated;
  if (gated) {
    cp_async_wait<pending>();  // before the barriers of add_rows
    add_rows<F::kThreads, kSimple>(s.gate, w.image);
    run_gate<T, F::kThreads, kGateLanes, kSimple>(s.gate, 0, s.first.channels, s.change, nullptr);
  }
  const float* scale = s.scale + w.image * s.scale_pitch;
  const float* add = static_cast<const float*>(s.add) + w.image * s.add_pitch;
  STDC_ROLLED
  for (int c = thread_id(); c < channels; c += F::kThreads) {
    const bool exists = c < s.first.channels;
    if (!gated || !exists) shared_store(s.change + c * 4, s.scale != nullptr && exists ? load(scale + c) : 1.f);
    shared_store(s.change + (channels + c) * 4, s.add_kind == kVector && exists ? load(add + c) : 0.f);
  }
  block_sync();
}
template <class F>
STDC_DEVICE void load_change(const Source& s, const Where& w, const Cursor& c, Change& change) {
  const uint32_t scale = s.change + Share<F>(s, w, c).channel * 4, add = scale + s.first.units * 64;
  STDC_UNROLL
  for (int i = 0; i < 8; i += 4) {
    const Vec a = shared_load<Vec>(scale + i * 4), b = shared_load<Vec>(add + i * 4);
    STDC_UNROLL
    for (int k = 0; k < 4; ++k) {
      change.scale[i + k] = as_float(a.word[k]);
      change.add[i + k] = as_float(b.word[k]);
    }
  }
}

// x * scale + add, in place, by the threads that fetched it; what is outside of the image stays zero.
template <class T, class F>
STDC_DEVICE void change_pixels(const Source& s, const Where& w, const Cursor& c, const Change& change) {
  STDC_ROLLED
  for (Share<F> share(s, w, c); share.more(s); share.next(s, w)) {
    if (!share.inside(s)) continue;
    Vec v = shared_load<Vec>(share.at), m{};
    if (s.add_kind == kMap) m = shared_load<Vec>(share.at + s.beside);
    STDC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float low = low_of<T>(v.word[i]) * change.scale[2 * i] + change.add[2 * i];
      const float high = high_of<T>(v.word[i]) * change.scale[2 * i + 1] + change.add[2 * i + 1];
      v.word[i] = pack<T>(low + low_of<T>(m.word[i]), high + high_of<T>(m.word[i]));
    }
    shared_store(share.at, v);
  }
}

}  // namespace gpu
}  // namespace stdc
