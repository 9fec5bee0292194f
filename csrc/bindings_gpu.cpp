// The GPU's kernels for Python: arguments as objects with the structs' fields, pointers as numbers. No logic here.
// With STDC_HOST it is a module of its own, for tests, in which the same kernels run on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "gpu.h"
#if defined(STDC_HOST)
#include "cuda/primitives.cuh"
#endif

namespace py = pybind11;
using namespace stdc::gpu;

namespace {

template <class Args, class Pointer>
void pointer(py::class_<Args>& c, const char* name, Pointer Args::*field) {
  c.def_property(
      name, [field](const Args& a) { return reinterpret_cast<uintptr_t>(a.*field); },
      [field](Args& a, uintptr_t address) { a.*field = reinterpret_cast<Pointer>(address); });
}

}  // namespace

#define STDC_POINTER(type, name) pointer(type##_, #name, &type::name)
#define STDC_FIELD(type, name) type##_.def_readwrite(#name, &type::name)
#define STDC_TRIPLE(type, name)                                                                    \
  type##_.def_property(                                                                            \
      #name, [](const type& a) { return std::array<float, 3>{a.name[0], a.name[1], a.name[2]}; },    \
      [](type& a, std::array<float, 3> v) { std::copy(v.begin(), v.end(), a.name); })
#define STDC_ARGS(type)                                      \
  py::class_<type> type##_(m, #type, py::module_local());    \
  type##_.def(py::init([] { return type{}; }))

// NOTE: the types belong to each module: a process may have both, with the kernels and with their emulation.
void bind_gpu(py::module_& m) {
  m.def("driver_version", &driver_version);
  m.def("runtime_version", &runtime_version);
  const auto cores = [](const std::vector<Core>& found) {
    std::vector<std::array<int, 4>> all;
    for (const Core& c : found) all.push_back({c.warps_m, c.warps_n, c.m, c.n});
    return all;
  };
  m.def("cores", [cores] {
    return std::map<std::string, std::vector<std::array<int, 4>>>{
        {"conv", cores(conv_cores())}, {"stem", cores(stem_cores())}, {"down", cores(down_cores())}};
  });
  m.def("shared_bytes", [](const ConvArgs& a) { return shared_bytes(a); });
  m.def("shared_bytes", [](const StemArgs& a) { return shared_bytes(a); });
  m.def("shared_bytes", [](const DownArgs& a) { return shared_bytes(a); });
  m.def(
      "run",
      [](const std::vector<Step>& steps, uintptr_t stream, bool dependent, int device) {
        py::gil_scoped_release release;
        run(steps, {reinterpret_cast<void*>(stream), dependent}, device);
      },
      py::arg("steps"), py::arg("stream"), py::arg("dependent"), py::arg("device") = -1);

  py::enum_<Type>(m, "Type", py::module_local()).value("float16", kHalf).value("bfloat16", kBfloat);
  py::class_<Tiling>(m, "Tiling", py::module_local())
      .def(py::init([](int core, int height, int width, int chunk, int split) {
             return Tiling{core, height, width, chunk, split};
           }),
           py::arg("core"), py::arg("height"), py::arg("width"), py::arg("chunk"), py::arg("split"));

  STDC_ARGS(ConvArgs);
  STDC_FIELD(ConvArgs, type);
  STDC_FIELD(ConvArgs, tiling);
  STDC_POINTER(ConvArgs, x);
  STDC_POINTER(ConvArgs, other);
  STDC_POINTER(ConvArgs, weight);
  STDC_POINTER(ConvArgs, bias);
  STDC_POINTER(ConvArgs, y);
  STDC_POINTER(ConvArgs, scale);
  STDC_POINTER(ConvArgs, add);
  STDC_POINTER(ConvArgs, sums);
  STDC_POINTER(ConvArgs, workspace);
  STDC_POINTER(ConvArgs, arrivals);
  STDC_FIELD(ConvArgs, images);
  STDC_FIELD(ConvArgs, height);
  STDC_FIELD(ConvArgs, width);
  STDC_FIELD(ConvArgs, out_height);
  STDC_FIELD(ConvArgs, out_width);
  STDC_FIELD(ConvArgs, kernel);
  STDC_FIELD(ConvArgs, stride);
  STDC_FIELD(ConvArgs, channels);
  STDC_FIELD(ConvArgs, pitch);
  STDC_FIELD(ConvArgs, other_channels);
  STDC_FIELD(ConvArgs, other_pitch);
  STDC_FIELD(ConvArgs, outputs);
  STDC_FIELD(ConvArgs, out_pitch);
  STDC_FIELD(ConvArgs, act);
  STDC_FIELD(ConvArgs, planar);
  STDC_FIELD(ConvArgs, scale_pitch);
  STDC_FIELD(ConvArgs, add_kind);
  STDC_FIELD(ConvArgs, add_pitch);
  STDC_FIELD(ConvArgs, sums_rows);
  STDC_FIELD(ConvArgs, sums_pitch);

  STDC_ARGS(StemArgs);
  STDC_FIELD(StemArgs, type);
  STDC_FIELD(StemArgs, tiling);
  STDC_POINTER(StemArgs, image);
  STDC_FIELD(StemArgs, is_float);
  STDC_POINTER(StemArgs, weight);
  STDC_POINTER(StemArgs, bias);
  STDC_TRIPLE(StemArgs, offset);
  STDC_TRIPLE(StemArgs, outside);
  STDC_POINTER(StemArgs, y);
  STDC_FIELD(StemArgs, images);
  STDC_FIELD(StemArgs, frame_height);
  STDC_FIELD(StemArgs, frame_width);
  STDC_FIELD(StemArgs, height);
  STDC_FIELD(StemArgs, width);
  STDC_FIELD(StemArgs, out_height);
  STDC_FIELD(StemArgs, out_width);
  STDC_FIELD(StemArgs, outputs);
  STDC_FIELD(StemArgs, out_pitch);
  STDC_FIELD(StemArgs, act);
  STDC_FIELD(StemArgs, scale_y);
  STDC_FIELD(StemArgs, scale_x);

  STDC_ARGS(DownArgs);
  STDC_FIELD(DownArgs, type);
  STDC_FIELD(DownArgs, tiling);
  STDC_POINTER(DownArgs, x);
  STDC_POINTER(DownArgs, weight);
  STDC_POINTER(DownArgs, bias);
  STDC_POINTER(DownArgs, depthwise);
  STDC_POINTER(DownArgs, depthwise_bias);
  STDC_POINTER(DownArgs, y);
  STDC_POINTER(DownArgs, pooled);
  STDC_FIELD(DownArgs, images);
  STDC_FIELD(DownArgs, height);
  STDC_FIELD(DownArgs, width);
  STDC_FIELD(DownArgs, out_height);
  STDC_FIELD(DownArgs, out_width);
  STDC_FIELD(DownArgs, channels);
  STDC_FIELD(DownArgs, pitch);
  STDC_FIELD(DownArgs, outputs);
  STDC_FIELD(DownArgs, out_pitch);
  STDC_FIELD(DownArgs, pooled_pitch);
  STDC_FIELD(DownArgs, count_pad);

  STDC_ARGS(GateArgs);
  STDC_FIELD(GateArgs, type);
  STDC_POINTER(GateArgs, x);
  STDC_POINTER(GateArgs, weight);
  STDC_POINTER(GateArgs, bias);
  STDC_POINTER(GateArgs, weight2);
  STDC_POINTER(GateArgs, bias2);
  STDC_POINTER(GateArgs, y);
  STDC_FIELD(GateArgs, images);
  STDC_FIELD(GateArgs, rows);
  STDC_FIELD(GateArgs, channels);
  STDC_FIELD(GateArgs, pitch);
  STDC_FIELD(GateArgs, hidden);
  STDC_FIELD(GateArgs, outputs);
  STDC_FIELD(GateArgs, out_pitch);
  STDC_FIELD(GateArgs, act);
  STDC_FIELD(GateArgs, act2);

  STDC_ARGS(PrologueArgs);
  STDC_FIELD(PrologueArgs, type);
  STDC_POINTER(PrologueArgs, x);
  STDC_POINTER(PrologueArgs, scale);
  STDC_POINTER(PrologueArgs, add);
  STDC_POINTER(PrologueArgs, y);
  STDC_FIELD(PrologueArgs, images);
  STDC_FIELD(PrologueArgs, area);
  STDC_FIELD(PrologueArgs, channels);
  STDC_FIELD(PrologueArgs, pitch);
  STDC_FIELD(PrologueArgs, out_pitch);
  STDC_FIELD(PrologueArgs, scale_pitch);
  STDC_FIELD(PrologueArgs, add_kind);
  STDC_FIELD(PrologueArgs, add_pitch);

  STDC_ARGS(UpsampleArgs);
  STDC_POINTER(UpsampleArgs, logits);
  STDC_POINTER(UpsampleArgs, row_base);
  STDC_POINTER(UpsampleArgs, row_weight);
  STDC_POINTER(UpsampleArgs, column_start);
  STDC_POINTER(UpsampleArgs, column_weight);
  STDC_POINTER(UpsampleArgs, labels);
  STDC_FIELD(UpsampleArgs, images);
  STDC_FIELD(UpsampleArgs, classes);
  STDC_FIELD(UpsampleArgs, height);
  STDC_FIELD(UpsampleArgs, width);
  STDC_FIELD(UpsampleArgs, out_height);
  STDC_FIELD(UpsampleArgs, out_width);
  STDC_FIELD(UpsampleArgs, taps);
}

#if defined(STDC_HOST)
namespace {
namespace host = stdc::gpu::host;

// What tests set and read of the emulator.
void bind_host(py::module_& m) {
  // schedule: round_robin, forward, backward or random, the last from the seed.
  m.def(
      "set_options",
      [](const std::string& schedule, uint64_t seed, bool races, bool poison, bool block_races) {
        static const std::map<std::string, host::Schedule> schedules = {{"round_robin", host::Schedule::round_robin},
                                                                        {"forward", host::Schedule::forward},
                                                                        {"backward", host::Schedule::backward},
                                                                        {"random", host::Schedule::random}};
        host::options() = {schedules.at(schedule), seed, races, poison, block_races};
      },
      py::arg("schedule") = "forward", py::arg("seed") = 1, py::arg("races") = true, py::arg("poison") = true,
      py::arg("block_races") = false);
  // (address, bytes, whether they are weights) of all memory that the next launches may use.
  m.def("set_memory", [](const std::vector<std::tuple<uintptr_t, size_t, bool>>& ranges) {
    std::vector<host::Range> found;
    for (const auto& [address, bytes, weight] : ranges)
      found.push_back({reinterpret_cast<const void*>(address), bytes,
                       weight ? host::Memory::weight : host::Memory::data});
    host::set_memory(std::move(found));
  });
  m.def("statistics", [] {
    const host::Statistics& s = host::statistics();
    return std::map<std::string, int64_t>{{"launches", s.launches}, {"blocks", s.blocks},
                                          {"mma", s.mma},           {"ldmatrix", s.ldmatrix},
                                          {"barriers", s.barriers}, {"switches", s.switches},
                                          {"copied_bytes", s.copied_bytes}};
  });
  m.def("reset_statistics", &host::reset_statistics);
}

}  // namespace

PYBIND11_MODULE(stdc_fast_host, m) {
  bind_gpu(m);
  bind_host(m);
}
#endif
