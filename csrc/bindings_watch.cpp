// Whether Python objects are as they were when they were looked at: what stdc_fast/freshness.py asks at every call.
// Loops over a network's 230 tensors and 900 attributes take Python 100 us. No torch here: a tensor's version comes
// from Python's own descriptor, and its place from DLPack's table of functions, where torch has one.
#include <pybind11/pybind11.h>

#include <cstring>
#include <vector>

namespace py = pybind11;

namespace {

// As of DLPack 1.3, which is a binary interface: what lies where, up to the function that is called.
struct Strided {
  void* data;
  int32_t device_type, device_id, dimensions;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct Exchange {
  uint32_t major, minor;
  const void* before;
  void *allocate, *give, *take;
  int (*describe)(void* tensor, Strided* described);  // 0, or an error of Python's; owns nothing
};

constexpr int kDimensions = 4;

// Where a tensor is and how it lies there; all of it is compared, byte by byte.
struct Place {
  void* data;
  uint64_t offset;
  int64_t kind[4];  // dimensions, dtype, device
  int64_t shape[kDimensions], strides[kDimensions];
};

bool describe(const Exchange& exchange, PyObject* tensor, Place* place) {
  Strided s{};
  if (exchange.describe(tensor, &s) != 0) {
    PyErr_Clear();
    return false;
  }
  if (s.dimensions > kDimensions || (s.dimensions && !(s.shape && s.strides))) return false;
  const int64_t dtype = s.code << 24 | s.bits << 16 | s.lanes;
  *place = {s.data, s.byte_offset, {s.dimensions, dtype, s.device_type, s.device_id}, {}, {}};
  for (int i = 0; i < s.dimensions; i++) place->shape[i] = s.shape[i], place->strides[i] = s.strides[i];
  return true;
}

// -1 where there is none, as of tensors that were made under inference_mode.
int64_t version(PyObject* descriptor, PyObject* tensor) {
  PyObject* found = Py_TYPE(descriptor)->tp_descr_get(descriptor, tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
  const int64_t number = found ? PyLong_AsLongLong(found) : -1;
  Py_XDECREF(found);
  if (number == -1) PyErr_Clear();
  return number;
}

// NOTE: no references are counted here, or a module whose dictionary leads back to this object would never be freed:
// the garbage collector does not look into it. Whoever makes one keeps all that it is given as long as it is used.
class Watch {
 public:
  Watch(const py::list& dicts, const py::list& keys, const py::list& values, const py::list& sized,
        const py::list& objects, const py::list& tensors, const py::object& versions, const py::capsule& exchange)
      : versions_(versions.ptr()) {
    for (const py::list& of : {keys, values})
      if (of.size() != dicts.size()) throw std::invalid_argument("lists of different lengths");
    const auto* table = static_cast<const Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!table) throw py::error_already_set();
    if (table->major != 1 || !table->describe || !Py_TYPE(versions_)->tp_descr_get)
      throw std::invalid_argument("another version of DLPack");
    exchange_ = table;
    for (size_t i = 0; i < dicts.size(); i++) {
      PyObject *dict = item(dicts, i), *key = item(keys, i), *value = item(values, i);
      if (!PyDict_Check(dict)) throw std::invalid_argument("no dict");
      Py_ssize_t at = 0, next = 0;
      PyObject *k = nullptr, *v = nullptr;
      while (PyDict_Next(dict, &next, &k, &v) && k != key) at = next;
      places_.push_back({dict, key, value, at});
    }
    for (size_t i = 0; i < sized.size(); i++)
      if (!PyDict_Check(item(sized, i))) throw std::invalid_argument("no dict");
    for (size_t i = 0; i < sized.size(); i++) sized_.push_back({item(sized, i), PyDict_Size(item(sized, i))});
    for (size_t i = 0; i < objects.size(); i++) objects_.push_back({item(objects, i), Py_TYPE(item(objects, i))});
    for (size_t i = 0; i < tensors.size(); i++) {
      Tensor t{item(tensors, i), 0, {}};
      t.version = version(versions_, t.object);
      if (t.version < 0 || !describe(*exchange_, t.object, &t.place)) throw std::invalid_argument("no plain tensor");
      tensors_.push_back(t);
    }
  }

  bool holds() const {
    for (const Sized& s : sized_)
      if (PyDict_Size(s.dict) != s.size) return false;  // of hooks too, which are empty where a module is packed
    for (const auto& [object, type] : objects_)
      if (Py_TYPE(object) != type) return false;
    for (const Entry& e : places_) {
      Py_ssize_t at = e.at;  // no search, as long as nothing before it was deleted
      PyObject *key = nullptr, *value = nullptr;
      if (!PyDict_Next(e.dict, &at, &key, &value) || key != e.key) {
        value = PyDict_GetItemWithError(e.dict, e.key);
        PyErr_Clear();
      }
      if (value != e.value) return false;
    }
    for (const Tensor& t : tensors_) {
      Place now;
      if (version(versions_, t.object) != t.version || !describe(*exchange_, t.object, &now) ||
          std::memcmp(&now, &t.place, sizeof now) != 0)
        return false;
    }
    return true;
  }

 private:
  struct Entry {
    PyObject *dict, *key, *value;
    Py_ssize_t at;
  };
  struct Sized {
    PyObject* dict;
    Py_ssize_t size;
  };
  struct Tensor {
    PyObject* object;
    int64_t version;
    Place place;
  };

  static PyObject* item(const py::list& list, size_t i) { return PyList_GET_ITEM(list.ptr(), i); }

  PyObject* versions_;
  const Exchange* exchange_;
  std::vector<Entry> places_;
  std::vector<Sized> sized_;
  std::vector<std::pair<PyObject*, PyTypeObject*>> objects_;
  std::vector<Tensor> tensors_;
};

}  // namespace

void bind_watch(py::module_& m) {
  py::class_<Watch>(m, "Watch")
      .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&, const py::list&,
                    const py::list&, const py::object&, const py::capsule&>(),
           py::arg("dicts"), py::arg("keys"), py::arg("values"), py::arg("sized"), py::arg("objects"),
           py::arg("tensors"), py::arg("versions"), py::arg("exchange"))
      .def("holds", &Watch::holds);
}
