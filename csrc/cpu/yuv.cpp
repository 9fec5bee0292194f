// Rows of a video's Y'CbCr to RGB. Plain loops of a fixed length, which compilers make vectors of.
#include "simd.h"

namespace stdc {
namespace {

// Between the two rows of chroma: n samples to float.
template <class T>
STDC_INLINE void between_rows(const void* above, const void* below, float weight, int step, float* out, int64_t n) {
  const T* a = static_cast<const T*>(above);
  const T* b = static_cast<const T*>(below);
  if (step == 1) {
    if (a == b) {
      for (int64_t i = 0; i < n; i++) out[i] = a[i];
    } else {
      for (int64_t i = 0; i < n; i++) out[i] = a[i] + weight * (static_cast<float>(b[i]) - a[i]);
    }
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = a[2 * i] + weight * (static_cast<float>(b[2 * i]) - a[2 * i]);
  }
}

// Twice as many columns: 2n floats from n, of which in[-1] and in[n] repeat their neighbours.
STDC_INLINE void between_columns(float* in, float* out, int64_t n, bool centred) {
  in[-1] = in[0];
  in[n] = in[n - 1];
  if (centred) {
    for (int64_t i = 0; i < n; i++) {
      out[2 * i] = 0.75f * in[i] + 0.25f * in[i - 1];
      out[2 * i + 1] = 0.75f * in[i] + 0.25f * in[i + 1];
    }
  } else {
    for (int64_t i = 0; i < n; i++) {
      out[2 * i] = in[i];
      out[2 * i + 1] = 0.5f * (in[i] + in[i + 1]);
    }
  }
}

STDC_INLINE uint8_t level(float x) {
  const int i = static_cast<int>(x + 0.5f);  // truncates, which only differs below zero
  return static_cast<uint8_t>(i < 0 ? 0 : i > 255 ? 255 : i);
}

typedef uint8_t B __attribute__((vector_size(16)));
typedef uint8_t Bu __attribute__((vector_size(16), aligned(1), may_alias));
STDC_INLINE B bytes(const uint8_t* p) { return *reinterpret_cast<const Bu*>(p); }
#define STDC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

// Three runs of bytes to one of triples.
STDC_INLINE void interleave(const uint8_t* red, const uint8_t* green, const uint8_t* blue, uint8_t* out) {
  for (int i = 0; i < kYuvRun; i += 16) {
    const B r = bytes(red + i), g = bytes(green + i), b = bytes(blue + i);
    const B rg0 = STDC_SHUFFLE(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
    const B rg1 = STDC_SHUFFLE(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
    const B rg2 = STDC_SHUFFLE(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
    Bu* to = reinterpret_cast<Bu*>(out + 3 * i);
    to[0] = STDC_SHUFFLE(rg0, b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
    to[1] = STDC_SHUFFLE(rg1, b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
    to[2] = STDC_SHUFFLE(rg2, b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
  }
}

typedef float F4 __attribute__((vector_size(16)));
typedef float F4u __attribute__((vector_size(16), aligned(4), may_alias));

// Where a level lies in the table: the step below it, and how far towards the next.
STDC_INLINE int step_of(float level, int steps, float& rest) {
  const float last = static_cast<float>(steps - 1);
  float x = level * (last / 255.0f);
  x = x < 0 ? 0 : x > last ? last : x;
  const int step = x < last ? static_cast<int>(x) : steps - 2;
  rest = x - static_cast<float>(step);
  return step;
}

// Colours by the table, interpolated between the eight of its colours that are nearest.
STDC_INLINE void through_table(const YuvRow& a, const float* red, const float* green, const float* blue, uint8_t* out) {
  const ptrdiff_t n = a.steps;
  for (int i = 0; i < kYuvRun; i++) {
    float r, g, b;
    const ptrdiff_t x = step_of(red[i], a.steps, r), y = step_of(green[i], a.steps, g), z = step_of(blue[i], a.steps, b);
    const auto at = [&](ptrdiff_t k) {
      const float* p = a.table + 4 * ((z * n + y) * n + x + k);
      const F4 low = *reinterpret_cast<const F4u*>(p), high = *reinterpret_cast<const F4u*>(p + 4);
      return low + r * (high - low);
    };
    const F4 near = at(0) + g * (at(n) - at(0)), far = at(n * n) + g * (at(n * n + n) - at(n * n));
    const F4 c = near + b * (far - near);
    for (int k = 0; k < 3; k++) out[3 * i + k] = level(c[k]);
  }
}

template <class T>
STDC_INLINE void run(const YuvRow& a, const T* y, const float* u, const float* v, uint8_t* out) {
  float colours[3][kYuvRun];
  for (int i = 0; i < kYuvRun; i++) {
    const float luma = a.luma * y[i];
    colours[0][i] = luma + a.red_v * v[i] + a.offset[0];
    colours[1][i] = luma + a.green_u * u[i] + a.green_v * v[i] + a.offset[1];
    colours[2][i] = luma + a.blue_u * u[i] + a.offset[2];
  }
  if (a.table) return through_table(a, colours[0], colours[1], colours[2], out);
  uint8_t levels[3][kYuvRun];
  for (int c = 0; c < 3; c++)
    for (int i = 0; i < kYuvRun; i++) levels[c][i] = level(colours[c][i]);
  interleave(levels[0], levels[1], levels[2], out);
}

template <class T>
STDC_INLINE void row(const YuvRow& a) {
  const int64_t n = (a.pixels + a.ratio - 1) / a.ratio;
  const int64_t room = a.pixels + 2 * kYuvRun;
  float *u = a.scratch, *v = u + room, *narrow = v + room + 1;
  const void* const* planes[2] = {a.u, a.v};
  for (int i = 0; i < 2; i++) {
    float* whole = i ? v : u;
    between_rows<T>(planes[i][0], planes[i][1], a.below, a.step, a.ratio == 1 ? whole : narrow, n);
    if (a.ratio == 2) between_columns(narrow, whole, n, a.centred);
  }
  const T* y = static_cast<const T*>(a.y);
  int64_t first = 0;
  for (; first + kYuvRun <= a.pixels; first += kYuvRun) run(a, y + first, u + first, v + first, a.out + 3 * first);
  if (first < a.pixels) {
    const int64_t rest = a.pixels - first;
    T last[kYuvRun] = {};
    uint8_t rgb[3 * kYuvRun];
    memcpy(last, y + first, rest * sizeof(T));
    for (int64_t i = a.pixels; i < first + kYuvRun; i++) u[i] = v[i] = 0;
    run(a, last, u + first, v + first, rgb);
    memcpy(a.out + 3 * first, rgb, 3 * rest);
  }
}

}  // namespace

void STDC_FN(yuv_u8)(const YuvRow& a) {
  if (a.wide)
    row<uint16_t>(a);
  else
    row<uint8_t>(a);
}

}  // namespace stdc
