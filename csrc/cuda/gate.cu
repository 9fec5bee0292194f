// Matrix-vector products of averages: attention, feature fusion, global context.
#include "gate.cuh"
#include "launch.cuh"

namespace stdc {
namespace gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kOutputs = kGateOutputs;  // of a block: one a warp

struct Params {
  Gate g;
  float* y;
  int pitch;
};

template <class T>
STDC_KERNEL(kThreads, 1)
gate_kernel(const STDC_CONSTANT Params p) {
  launch_dependents<kFirst>();
  const int64_t image = block_id().y;
  const int begin = block_id().x * kOutputs, end = begin + kOutputs < p.g.outputs ? begin + kOutputs : p.g.outputs;
  fetch_gate<kThreads, kAnyGate>(p.g, begin, end);
  cp_async_commit();
  grid_wait();
  cp_async_wait<0>();  // before the barriers of add_rows
  add_rows<kThreads, kAnyGate>(p.g, image);
  run_gate<T, kThreads, 32, kAnyGate>(p.g, begin, end, 0, p.y + image * p.pitch);
}

}  // namespace

void gate(const GateArgs& a, const Stream& stream) {
  int shared = 0;
  const Params p{lay_out(a, kThreads, kOutputs, 32, shared), a.y, a.out_pitch};
  const Index grid{(a.outputs + kOutputs - 1) / kOutputs, a.images, 1};
  const Kernel<Params> of[kTypes] = {gate_kernel<half_t>, gate_kernel<bf16_t>};
  launch(of[a.type], "gate", grid, kThreads, shared, p, stream);
}

}  // namespace gpu
}  // namespace stdc
