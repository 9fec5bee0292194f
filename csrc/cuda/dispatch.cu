// From an op's arguments to the objects of its type, and what forms there are.
#include "launch.cuh"
#include "forms.h"

namespace stdc {
namespace gpu {

#if !STDC_HAVE_WGMMA
namespace {
[[noreturn]] void refuse(const ConvArgs& a) {
  throw std::runtime_error("conv: no form " + std::to_string(a.tiling.form) + " without code for sm_90a");
}
}  // namespace
template <>
void wgmma_of<half_t>(const ConvArgs& a, const Stream&) {
  refuse(a);
}
template <>
void wgmma_of<bf16_t>(const ConvArgs& a, const Stream&) {
  refuse(a);
}
template <>
int wgmma_bytes_of<half_t>(const ConvArgs&) {
  return 0;
}
template <>
int wgmma_bytes_of<bf16_t>(const ConvArgs&) {
  return 0;
}
#endif

// By Type.
template <class Args>
using Launchers = void (*[kTypes])(const Args&, const Stream&);

void conv(const ConvArgs& a, const Stream& s) {
  static constexpr Launchers<ConvArgs> of = {conv_of<half_t>, conv_of<bf16_t>};
  if (a.multipliers != nullptr)
    conv_levels(a, s);
  else
    of[a.type](a, s);
}
void stem(const StemArgs& a, const Stream& s) {
  static constexpr Launchers<StemArgs> of = {stem_of<half_t>, stem_of<bf16_t>};
  of[a.type](a, s);
}
void stem_conv(const StemConvArgs& a, const Stream& s) {
  static constexpr Launchers<StemConvArgs> of = {stem_conv_of<half_t>, stem_conv_of<bf16_t>};
  of[a.type](a, s);
}
void down(const DownArgs& a, const Stream& s) {
  static constexpr Launchers<DownArgs> of = {down_of<half_t>, down_of<bf16_t>};
  of[a.type](a, s);
}

void run(const std::vector<Step>& steps, const Stream& stream, int device) {
  const DeviceGuard guard(device);
  struct {
    const Stream& s;
    void operator()(const ConvArgs& a) { conv(a, s); }
    void operator()(const StemArgs& a) { stem(a, s); }
    void operator()(const StemConvArgs& a) { stem_conv(a, s); }
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
int shared_bytes(const StemConvArgs& a) { return stem_conv_bytes_of<half_t>(a); }
int shared_bytes(const DownArgs& a) { return down_bytes_of<half_t>(a); }

#define STDC_FORM(index, wm, wn, mi, ni, slices) {wm, wn, mi, ni, slices},
std::vector<Form> conv_forms() { return {STDC_CONV_FORMS(STDC_FORM)}; }
#if STDC_HAVE_WGMMA
std::vector<Form> wgmma_forms() { return {STDC_WGMMA_FORMS(STDC_FORM)}; }
#else
std::vector<Form> wgmma_forms() { return {}; }
#endif
std::vector<Form> stem_forms() { return {STDC_STEM_FORMS(STDC_FORM)}; }
std::vector<Form> stem_conv_forms() { return {STDC_STEM_CONV_FORMS(STDC_FORM)}; }
std::vector<Form> down_forms() { return {STDC_DOWN_FORMS(STDC_FORM)}; }

}  // namespace gpu
}  // namespace stdc
