// The GPU's kernels for Python: arguments as objects with the structs' fields, pointers as numbers. No logic here.
// With STDC_EMULATOR it is a module of its own, for tests, in which the same kernels run on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "gpu.h"
#if defined(STDC_EMULATOR)
#include "cuda/primitives.cuh"
#else
#include "replay.h"
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

#define STDC_FIELD(type, name) fields.def_readwrite(#name, &Args::name);
#define STDC_POINTER(type, name) pointer(fields, #name, &Args::name);
#define STDC_TRIPLE(name)                                                                         \
  fields.def_property(                                                                            \
      #name, [](const Args& a) { return std::array<float, 3>{a.name[0], a.name[1], a.name[2]}; }, \
      [](Args& a, std::array<float, 3> v) { std::copy(v.begin(), v.end(), a.name); });
#define STDC_BIND(name, list)                              \
  {                                                        \
    using Args = name;                                     \
    py::class_<Args> fields(m, #name, py::module_local()); \
    fields.def(py::init([] { return Args{}; }));           \
    fields.def(py::init([](const Args& a) { return a; })); \
    list(STDC_FIELD, STDC_POINTER, STDC_TRIPLE)            \
  }

// NOTE: the types belong to each module: a process may have both, with the kernels and with their emulation.
void bind_gpu(py::module_& m) {
  m.def("driver_version", &driver_version);
  m.def("runtime_version", &runtime_version);
  const auto forms = [](const std::vector<Form>& found) {
    std::vector<std::array<int, 5>> all;
    for (const Form& c : found) all.push_back({c.warps_m, c.warps_n, c.m, c.n, c.slices});
    return all;
  };
  m.def("forms", [forms] {
    return std::map<std::string, std::vector<std::array<int, 5>>>{
        {"conv", forms(conv_forms())}, {"wgmma", forms(wgmma_forms())}, {"stem", forms(stem_forms())},
        {"stem_conv", forms(stem_conv_forms())}, {"down", forms(down_forms())}};
  });
  m.def("shared_bytes", [](const ConvArgs& a) { return shared_bytes(a); });
  m.def("shared_bytes", [](const StemArgs& a) { return shared_bytes(a); });
  m.def("shared_bytes", [](const StemConvArgs& a) { return shared_bytes(a); });
  m.def("shared_bytes", [](const DownArgs& a) { return shared_bytes(a); });
  m.def(
      "run",
      [](const std::vector<Step>& steps, uintptr_t stream, bool dependent, int device) {
        py::gil_scoped_release release;
        run(steps, {reinterpret_cast<void*>(stream), dependent}, device);
      },
      py::arg("steps"), py::arg("stream"), py::arg("dependent"), py::arg("device") = -1);
#if !defined(STDC_EMULATOR)
  // One step on a stream that is captured: (its node, bytes of the node's argument).
  m.def(
      "run_captured",
      [](const Step& step, uintptr_t stream, bool dependent, int device) {
        size_t bytes = 0;
        const auto handle = reinterpret_cast<void*>(stream);
        run({step}, {handle, dependent, &bytes}, device);
        return std::make_pair(reinterpret_cast<uintptr_t>(captured_node(handle)), bytes);
      },
      py::arg("step"), py::arg("stream"), py::arg("dependent"), py::arg("device"));
  py::class_<Replay>(m, "Replay", py::module_local())
      .def(py::init([](uintptr_t graph, uintptr_t event, int device, std::pair<uintptr_t, size_t> frame,
                       std::pair<uintptr_t, size_t> labels, const std::vector<std::pair<uintptr_t, size_t>>& nodes) {
             std::vector<Node> of;
             for (const auto& [node, bytes] : nodes) of.push_back({reinterpret_cast<void*>(node), bytes});
             const Places places{reinterpret_cast<void*>(frame.first), frame.second,
                                 reinterpret_cast<void*>(labels.first), labels.second};
             return new Replay(reinterpret_cast<void*>(graph), reinterpret_cast<void*>(event), device, places, of);
           }),
           py::arg("graph"), py::arg("event"), py::arg("device"), py::arg("frame"), py::arg("labels"), py::arg("nodes"))
      .def("__call__",
           [](Replay& replay, uintptr_t stream, uintptr_t frame, uintptr_t labels) {
             py::gil_scoped_release release;
             return replay(reinterpret_cast<void*>(stream), reinterpret_cast<void*>(frame),
                           reinterpret_cast<void*>(labels));
           })
      .def("reset", &Replay::reset);
#endif

  py::enum_<Type>(m, "Type", py::module_local()).value("float16", kHalf).value("bfloat16", kBfloat);
  py::class_<Tiling>(m, "Tiling", py::module_local())
      .def(py::init([](int form, int height, int width, int chunk, int split, int cluster) {
             return Tiling{form, height, width, chunk, split, cluster};
           }),
           py::arg("form"), py::arg("height"), py::arg("width"), py::arg("chunk"), py::arg("split"),
           py::arg("cluster") = 1);

  STDC_ARGS(STDC_BIND)
}

#if defined(STDC_EMULATOR)
namespace {
namespace emulator = stdc::gpu::emulator;

// What tests set and read of the emulator.
void bind_emulator(py::module_& m) {
  // schedule: round_robin, forward, backward or random, the last from the seed.
  m.def(
      "set_options",
      [](const std::string& schedule, uint64_t seed, bool races, bool poison, bool block_races) {
        static const std::map<std::string, emulator::Schedule> schedules = {{"round_robin", emulator::Schedule::round_robin},
                                                                        {"forward", emulator::Schedule::forward},
                                                                        {"backward", emulator::Schedule::backward},
                                                                        {"random", emulator::Schedule::random}};
        emulator::options() = {schedules.at(schedule), seed, races, poison, block_races};
      },
      py::arg("schedule") = "forward", py::arg("seed") = 1, py::arg("races") = true, py::arg("poison") = true,
      py::arg("block_races") = false);
  // (address, bytes, whether they are weights) of all memory that the next launches may use.
  m.def("set_memory", [](const std::vector<std::tuple<uintptr_t, size_t, bool>>& ranges) {
    std::vector<emulator::Range> found;
    for (const auto& [address, bytes, weight] : ranges)
      found.push_back({reinterpret_cast<const void*>(address), bytes,
                       weight ? emulator::Memory::weight : emulator::Memory::data});
    emulator::set_memory(std::move(found));
  });
  m.def("statistics", [] {
    const emulator::Statistics& s = emulator::statistics();
    return std::map<std::string, int64_t>{{"launches", s.launches}, {"blocks", s.blocks},
                                          {"mma", s.mma},           {"wgmma", s.wgmma}, {"ldmatrix", s.ldmatrix},
                                          {"barriers", s.barriers}, {"switches", s.switches},
                                          {"copied_bytes", s.copied_bytes}};
  });
  m.def("reset_statistics", &emulator::reset_statistics);
}

}  // namespace

PYBIND11_MODULE(stdc_fast_emulator, m) {
  bind_gpu(m);
  bind_emulator(m);
}
#endif
