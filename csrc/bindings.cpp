// The native module: the CPU engine for Python. No logic here but checks of what is given.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

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

// Where a plane of a picture starts, and whether it has what will be read of it.
const char* plane(const py::buffer_info& buffer, int64_t offset, int64_t rows, int64_t row, int64_t bytes) {
  if (offset < 0 || row < bytes || rows < 1 || offset + (rows - 1) * row + bytes > buffer.size * buffer.itemsize)
    throw std::invalid_argument("a plane of " + std::to_string(buffer.size * buffer.itemsize) + " bytes is too short");
  return static_cast<const char*>(buffer.ptr) + offset;
}

// planes: (buffer, offset in bytes, bytes from row to row) of Y, U and V. table: float32 [steps][steps][steps][4].
void yuv_to_rgb(const std::array<std::tuple<py::buffer, int64_t, int64_t>, 3>& planes, const py::buffer& rgb,
                const std::array<int, 2>& ratio, int step, bool wide, bool centred, const std::array<float, 8>& matrix,
                const std::optional<py::buffer>& table) {
  py::buffer_info in[3] = {std::get<0>(planes[0]).request(), std::get<0>(planes[1]).request(),
                           std::get<0>(planes[2]).request()};
  const py::buffer_info out = rgb.request(true);
  const auto known = [](int n) { return n == 1 || n == 2; };
  if (out.ndim != 3 || out.shape[2] != 3 || out.itemsize != 1 || out.strides[2] != 1 || out.strides[1] != 3 ||
      out.strides[0] != 3 * out.shape[1] || out.shape[0] < 1 || out.shape[1] < 1 || !known(ratio[0]) || !known(ratio[1]) ||
      !known(step) || std::get<2>(planes[1]) != std::get<2>(planes[2]))
    throw std::invalid_argument("no picture that yuv_to_rgb() takes");
  stdc::Yuv p{};
  p.height = out.shape[0], p.width = out.shape[1];
  p.ratio_x = ratio[0], p.ratio_y = ratio[1], p.step = step, p.wide = wide;
  p.centred = centred;
  const int64_t size = wide ? 2 : 1, columns = (p.width + ratio[0] - 1) / ratio[0];
  const char* start[3];
  for (int i = 0; i < 3; i++) {
    const int64_t rows = i ? (p.height + ratio[1] - 1) / ratio[1] : p.height;
    const int64_t samples = i ? (columns - 1) * step + 1 : p.width;
    start[i] = plane(in[i], std::get<1>(planes[i]), rows, std::get<2>(planes[i]), samples * size);
  }
  p.y = start[0], p.u = start[1], p.v = start[2];
  p.y_row = std::get<2>(planes[0]), p.chroma_row = std::get<2>(planes[1]);
  p.luma = matrix[0], p.red_v = matrix[1], p.green_u = matrix[2], p.green_v = matrix[3], p.blue_u = matrix[4];
  std::copy(matrix.begin() + 5, matrix.end(), p.offset);
  py::buffer_info colours;
  if (table) {
    colours = table->request();
    const int64_t n = colours.ndim == 4 ? colours.shape[0] : 0;
    if (n < 2 || n > 256 || colours.format != py::format_descriptor<float>::format() || colours.size != 4 * n * n * n ||
        colours.shape[3] != 4 || colours.strides[3] != 4 || colours.strides[2] != 16 || colours.strides[1] != 16 * n ||
        colours.strides[0] != 16 * n * n)
      throw std::invalid_argument("no table that yuv_to_rgb() takes");
    p.table = static_cast<const float*>(colours.ptr), p.steps = static_cast<int>(n);
  }
  py::gil_scoped_release release;
  stdc::yuv_to_rgb(p, static_cast<uint8_t*>(out.ptr));
}

}  // namespace

void bind_watch(py::module_& m);
#if defined(STDC_HAVE_CUDA)
void bind_gpu(py::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
  bind_watch(m);
#if defined(STDC_HAVE_CUDA)
  py::module_ gpu = m.def_submodule("gpu");
  bind_gpu(gpu);
#endif
  m.def("isas", &stdc::isas);
  m.def("best_isa", &stdc::best_isa, py::arg("wanted") = "");
  m.def("levels_pay", &stdc::levels_pay, py::arg("isa"), py::arg("dtype"), py::arg("tiles"), py::arg("shape"));
  m.def("yuv_to_rgb", &yuv_to_rgb, py::arg("planes"), py::arg("rgb"), py::arg("ratio"), py::arg("step"),
        py::arg("wide"), py::arg("centred"), py::arg("matrix"), py::arg("table") = py::none());
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
