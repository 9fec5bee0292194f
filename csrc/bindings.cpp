// The native module: the CPU engine for Python. No logic here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "core/dtypes.h"
#include "engine.h"

namespace py = pybind11;

namespace {

// (address, dtype, shape [4], strides [4] in elements)
using Spec = std::tuple<uintptr_t, std::string, std::array<int64_t, 4>, std::array<int64_t, 4>>;

stdc::Tensor tensor(const Spec& spec) {
  const auto& [address, dtype, shape, stride] = spec;
  stdc::Tensor t{reinterpret_cast<void*>(address), stdc::DType::f32, {}, {}};
  if (!stdc::find_dtype(dtype, t.dtype))
    throw std::invalid_argument("dtype " + dtype + "; the engine takes " + stdc::dtype_names());
  std::copy(shape.begin(), shape.end(), t.shape);
  std::copy(stride.begin(), stride.end(), t.stride);
  return t;
}

}  // namespace

#if defined(STDC_HAVE_CUDA)
void bind_gpu(py::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
#if defined(STDC_HAVE_CUDA)
  py::module_ gpu = m.def_submodule("gpu");
  bind_gpu(gpu);
#endif
  m.def("isas", &stdc::isas);
  m.def("best_isa", &stdc::best_isa, py::arg("wanted") = "");
  py::class_<stdc::Engine>(m, "Engine")
      .def(py::init([](const py::bytes& plan, const std::string& isa, bool small) {
             const std::string_view bytes(plan);
             return new stdc::Engine(bytes.data(), bytes.size(), isa, small);
           }),
           py::arg("plan"), py::arg("isa") = "", py::arg("small") = false)
      .def(
          "run",
          [](stdc::Engine& e, const std::vector<Spec>& inputs, const Spec& output, int64_t height, int64_t width,
             int threads, bool exact) {
            std::vector<stdc::Tensor> in;
            for (const Spec& s : inputs) in.push_back(tensor(s));
            const stdc::Tensor out = tensor(output);
            if (in.empty()) throw std::invalid_argument("no inputs");
            py::gil_scoped_release release;
            e.run(in.data(), static_cast<int>(in.size()), out, height, width, threads, exact);
          },
          py::arg("inputs"), py::arg("output"), py::arg("height"), py::arg("width"), py::arg("threads"),
          py::arg("exact") = true)
      .def_property_readonly("isa", &stdc::Engine::isa)
      .def_property_readonly("name", &stdc::Engine::name)
      .def_property_readonly("memory",
                             [](const stdc::Engine& e) {
                               const stdc::Memory m = e.memory();
                               return std::make_pair(m.weights, m.arena);
                             })
      .def_property_readonly("forms",
                             [](const stdc::Engine& e) {
                               std::vector<std::tuple<std::string, std::string, std::string>> found;
                               for (const auto& f : e.forms()) found.emplace_back(f.name, f.kind, f.form);
                               return found;
                             })
      .def("poison", &stdc::Engine::poison)
      .def("profile", &stdc::Engine::profile)
      .def("profiled", [](const stdc::Engine& e) {
        std::vector<std::tuple<std::string, std::string, double, int64_t>> found;
        for (const auto& p : e.profiled()) found.emplace_back(p.name, p.kind, p.seconds, p.calls);
        return found;
      });
}
