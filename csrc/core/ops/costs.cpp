// The model of costs. A core's share of products, tiles and bandwidth is the same for any number of cores.
#include "costs.h"

#include <algorithm>

#include "../dtypes.h"

namespace stdc {
namespace {

// Bytes of weights that memory gives a core in a cycle.
constexpr double kBandwidth = 6;
// What another form is to save at least.
constexpr double kGain = 0.1;
// Cycles for each element that is rounded to a level, of a Zen 4 core.
constexpr double kRound = 0.45;

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace

double direct_cycles(const KernelSet& kernels, DType dtype, const ConvShape& s) {
  const double products = static_cast<double>(s.channels) * s.outputs * s.kernel * s.kernel;
  return products * s.rows * s.columns / kernels.rates[dtype].products;
}

double tiles_cycles(const KernelSet& kernels, DType dtype, const ConvShape& s) {
  const Rates& rates = kernels.rates[dtype];
  const int n = s.kernel + kTile - 1, phases = s.kernel == 2 ? 4 : 1, step = s.kernel == 2 ? 2 : 1;
  const double positions = n * n, products = static_cast<double>(s.channels) * s.outputs;
  const double tiles = static_cast<double>(up(s.rows, step * kTile) * up(s.columns, step * kTile)) * phases;
  const double transforms = positions / 36 * (rates.in * s.channels + rates.out * s.outputs);
  const double bytes = positions * products * traits(dtype).bytes * phases;
  return tiles * (positions * products / rates.products + transforms) + bytes / kBandwidth;
}

bool tiles_pay(const KernelSet& kernels, DType dtype, const ConvShape& s) {
  return tiles_cycles(kernels, dtype, s) < (1 - kGain) * direct_cycles(kernels, dtype, s);
}

bool levels_pay(const KernelSet& kernels, DType dtype, const ConvShape& s, bool tiles) {
  double other = direct_cycles(kernels, dtype, s);
  if (tiles) other = std::min(other, tiles_cycles(kernels, dtype, s));
  const double pixels = static_cast<double>(s.rows) * s.columns * (s.kernel == 2 ? 0.25 : s.stride * s.stride);
  const double rounding = kRound * pixels * static_cast<double>(s.channels);
  return direct_cycles(kernels, DType::u8, s) + rounding < (1 - kGain) * other;
}

}  // namespace stdc
