// From an op's arguments to the objects of its type, and what forms there are.
#include "launch.cuh"
#include "shapes.h"

namespace stdc {
namespace gpu {

void conv(const ConvArgs& a, const Stream& s) { a.type == kHalf ? conv_of<half_t>(a, s) : conv_of<bf16_t>(a, s); }
void stem(const StemArgs& a, const Stream& s) { a.type == kHalf ? stem_of<half_t>(a, s) : stem_of<bf16_t>(a, s); }
void down(const DownArgs& a, const Stream& s) { a.type == kHalf ? down_of<half_t>(a, s) : down_of<bf16_t>(a, s); }

void run(const std::vector<Step>& steps, const Stream& stream, int device) {
  const DeviceGuard guard(device);
  struct {
    const Stream& s;
    void operator()(const ConvArgs& a) { conv(a, s); }
    void operator()(const StemArgs& a) { stem(a, s); }
    void operator()(const DownArgs& a) { down(a, s); }
    void operator()(const GateArgs& a) { gate(a, s); }
    void operator()(const PrologueArgs& a) { prologue(a, s); }
    void operator()(const UpsampleArgs& a) { upsample(a, s); }
  } one{stream};
  for (const Step& step : steps) std::visit(one, step);
}

#if defined(__CUDACC__)
int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
int runtime_version() { return CUDART_VERSION; }
#else
int driver_version() { return 0; }
int runtime_version() { return 0; }
#endif

// NOTE: both types need the same.
int shared_bytes(const ConvArgs& a) { return conv_bytes_of<half_t>(a); }
int shared_bytes(const StemArgs& a) { return stem_bytes_of<half_t>(a); }
int shared_bytes(const DownArgs& a) { return down_bytes_of<half_t>(a); }

#define STDC_CORE(index, wm, wn, mi, ni) {wm, wn, mi, ni},
std::vector<Core> conv_cores() { return {STDC_CONV_SHAPES(STDC_CORE)}; }
std::vector<Core> stem_cores() { return {STDC_STEM_SHAPES(STDC_CORE)}; }
std::vector<Core> down_cores() { return {STDC_DOWN_SHAPES(STDC_CORE)}; }

}  // namespace gpu
}  // namespace stdc
