#include "bindings/tensors.hpp"

#include <pybind11/numpy.h>

#include <atomic>
#include <cstdint>

#include "bindings/buffers.hpp"
#include "bindings/reading.hpp"
#include "bindings/visible.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

constexpr const char* kDtypes = "float16, bfloat16, float32 or float64";

std::string device_name(dlpack::Device device) {
  const char* name = device.type == dlpack::kCuda    ? "cuda"
                     : device.type == dlpack::kRocm  ? "rocm"
                     : device.type == dlpack::kMetal ? "mps"
                                                     : nullptr;
  if (!name) return "device type " + std::to_string(device.type);
  return name + (":" + std::to_string(device.id));
}

std::string dtype_name(dlpack::DataType dtype, const py::handle& item) {
  static constexpr const char* kNames[] = {"int", "uint", "float", "handle", "bfloat", "complex"};
  if (dtype.code == dlpack::kBool) return "bool";
  if (dtype.code <= dlpack::kComplex) return kNames[dtype.code] + std::to_string(dtype.bits);
  // Newer kinds have many names.
  const std::string kind = "DLPack's kind " + std::to_string(dtype.code);
  return visible(py::str(py::getattr(item, "dtype", py::str(kind))));
}

// Whether an array's descriptor is one of ours.
bool dtype_of(const py::dtype& descriptor, Dtype& dtype) {
  static std::atomic<int> bfloat16_number{-1};
  const int number = descriptor.num();
  if (number == 11 || number == 12 || number == 23) {
    if (descriptor.byteorder() != '=') return false;
    dtype = number == 11 ? Dtype::kFloat32 : number == 12 ? Dtype::kFloat64 : Dtype::kFloat16;
    return true;
  }
  if (number < 256) return false;  // those from 256 are other packages': ml_dtypes has bfloat16
  if (bfloat16_number.load() != number) {
    if (descriptor.itemsize() != 2 || std::string(py::str(descriptor.attr("name"))) != "bfloat16")
      return false;
    bfloat16_number.store(number);
  }
  dtype = Dtype::kBfloat16;
  return true;
}

// A device is a pair of numbers, which may be an enumeration's members.
bool device_of(const py::object& pair, dlpack::Device& device) {
  if (!PyTuple_Check(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) return false;
  std::int32_t numbers[2];
  for (int i = 0; i < 2; ++i) {
    PyObject* const item = PyTuple_GET_ITEM(pair.ptr(), i);
    if (!PyIndex_Check(item)) return false;
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(item));
    int overflow = 0;
    const long long value =
        number ? PyLong_AsLongLongAndOverflow(number.ptr(), &overflow) : (overflow = 1, 0);
    if (!number) PyErr_Clear();
    if (overflow != 0 || value < INT32_MIN || value > INT32_MAX) return false;
    numbers[i] = std::int32_t(value);
  }
  device = {numbers[0], numbers[1]};
  return true;
}

}  // namespace

std::string type_name(const py::handle& object) {
  return visible(py::str(py::type::handle_of(object).attr("__name__")));
}

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  const py::object capsule = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  if (!capsule) {
    PyErr_Clear();
    return nullptr;
  }
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api && api->version.major > 1) api = api->older;
  return api && api->version.major == 1 && api->tensor_from_object ? api : nullptr;
}

DenseReader::DenseReader(const py::type& type)
    : type_(type), api_(exchange_api(reinterpret_cast<PyTypeObject*>(type.ptr()))) {}

bool DenseReader::operator()(PyObject* object, AxisStore& axes, View& view) const {
  const auto* api = static_cast<const dlpack::ExchangeApi*>(api_);
  if (!api || reinterpret_cast<PyObject*>(Py_TYPE(object)) != type_.ptr()) return false;
  dlpack::Tensor tensor{};
  if (api->tensor_from_object(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  if (!take_plain(tensor, axes, view)) {
    if (!on_cpu(tensor.device) || !dtype_of(tensor.dtype, view.dtype)) return false;
    if (!flaw_of(tensor, view.itemsize()).empty()) return false;
    set_memory(tensor, axes, view);
  }
  if (view.count > 0 && !view.data) return false;
  set_dense(view);
  return view.dense;
}

void Buffers::take(const void* pointer, const py::handle& item, View& view) {
  const auto& tensor = *static_cast<const dlpack::Tensor*>(pointer);
  if (take_plain(tensor, axes_, view)) return;
  if (!on_cpu(tensor.device))
    throw py::type_error(here() + " must be on the CPU, not on " + device_name(tensor.device));
  if (!dtype_of(tensor.dtype, view.dtype))
    throw py::type_error(here() + " must be " + kDtypes + ", not " +
                         dtype_name(tensor.dtype, item));
  if (const std::string flaw = flaw_of(tensor, view.itemsize()); !flaw.empty())
    throw py::value_error(here() + " " + flaw);
  set_memory(tensor, axes_, view);
}

void Buffers::add_array(const py::handle& item, View& view) {
  const auto& array = *py::detail::array_proxy(item.ptr());
  if (array.descr == last_descriptor_.ptr()) {
    view.dtype = last_dtype_;
  } else {
    last_descriptor_ = py::reinterpret_borrow<py::object>(array.descr);
    const auto descriptor = py::reinterpret_borrow<py::dtype>(last_descriptor_);
    if (!dtype_of(descriptor, view.dtype)) {
      const bool native = py::cast<bool>(descriptor.attr("isnative"));
      throw py::type_error(
          here() + " must be " + kDtypes + ", not " + visible(py::str(descriptor)) +
          (native ? "" : ", whose bytes are in the other order than this machine's"));
    }
    last_dtype_ = view.dtype;
  }
  if (writable_ && !(array.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_))
    throw py::value_error(here() + " must be writable, not a read-only array");
  view.data = array.data;
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));
  view.ndim = std::int32_t(array.nd);
  if (view.ndim > kMostAxes)
    throw py::value_error(here() + " must have at most " + std::to_string(kMostAxes) +
                          " axes, not " + std::to_string(view.ndim));
  // Copied while we hold the lock: `array.shape = …` on another thread frees NumPy's own.
  const auto* const shape = reinterpret_cast<const std::int64_t*>(array.dimensions);
  if (array.flags & py::array::c_style) return copy_shape(shape, axes_, view);
  copy_axes(shape, reinterpret_cast<const std::int64_t*>(array.strides), 1, axes_, view);
}

// What add() does, for the items from number `next` that are arrays like the one before and
// contiguous; returns the number of the first that is not. Most lists are such arrays alone.
Py_ssize_t Buffers::add_arrays(PyObject* list, Py_ssize_t next) {
  const Py_ssize_t length = PyList_GET_SIZE(list);
  const int wanted =
      py::array::c_style | (writable_ ? py::detail::npy_api::NPY_ARRAY_WRITEABLE_ : 0);
  const auto array_at = [&](Py_ssize_t i) {
    PyObject* const item = PyList_GET_ITEM(list, i);
    return Py_TYPE(item) == last_type_ ? py::detail::array_proxy(item) : nullptr;
  };
  for (; next < length; ++next) {
    // The sizes lie elsewhere: they are fetched ahead.
    if (next + kAhead < length)
      if (const auto* const later = array_at(next + kAhead)) __builtin_prefetch(later->dimensions);
    const auto* const array = array_at(next);
    if (!array || array->descr != last_descriptor_.ptr() || (array->flags & wanted) != wanted ||
        array->nd > kMostAxes || !array->data)
      break;
    View& view = views.emplace_back();
    view.dtype = last_dtype_;
    view.data = array->data;
    view.ndim = std::int32_t(array->nd);
    copy_shape(reinterpret_cast<const std::int64_t*>(array->dimensions), axes_, view);
    set_dense(view);
    positions_.push_back(length_++);
  }
  return next;
}

void Buffers::add_exchanged(const py::handle& item, View& view) {
  const auto* api = static_cast<const dlpack::ExchangeApi*>(last_api_);
  dlpack::Tensor tensor{};
  if (api->tensor_from_object(item.ptr(), &tensor) != 0) {
    std::string reason = "it gives no reason";
    if (PyErr_Occurred()) {
      const py::error_already_set error;
      const py::str said(error.value());
      reason = visible(said.attr("partition")("\n")[py::int_(0)], 200);
    }
    if (py::hasattr(item, "device")) {
      const std::string device = visible(py::str(item.attr("device")));
      if (device != "cpu") throw py::type_error(here() + " must be on the CPU, not on " + device);
    }
    if (py::hasattr(item, "layout")) {
      const std::string layout = visible(py::str(item.attr("layout")));
      if (layout != "torch.strided")
        throw py::type_error(here() + " must be a dense tensor, not " + layout);
    }
    throw py::type_error(here() + " must be a tensor that can be read, not one of which " +
                         type_name(item) + " says: " + reason);
  }
  take(&tensor, item, view);
}

bool Buffers::is_of_jax(const py::handle& object) {
  return std::string(py::str(py::type::handle_of(object).attr("__module__"))).rfind("jax", 0) == 0;
}

const char* Buffers::hint_for(const py::handle& object) {
  if (type_name(object).ends_with("Tracer")) return ": inside jit and vmap it has no values yet";
  const bool fields = py::hasattr(object, "__dataclass_fields__") && !PyType_Check(object.ptr());
  return fields ? ": pass the arrays in it; jax.tree.leaves() finds those of Equinox" : "";
}

// An array of JAX that has no memory of its own, or not all of it in one place.
void Buffers::check_jax(const py::handle& item) const {
  if (!py::hasattr(item, "is_deleted") || !py::hasattr(item, "sharding")) return;
  if (py::bool_(item.attr("is_deleted")()))
    throw py::value_error(here() + " was deleted or donated: pass what took its place");
  const py::object sharding = item.attr("sharding");
  const std::size_t devices = py::len(sharding.attr("device_set"));
  const bool copies = py::bool_(sharding.attr("is_fully_replicated"));
  if (devices > 1)
    throw py::type_error(here() + " must be on one device, not " +
                         (copies ? "replicated on " : "in parts on ") + std::to_string(devices) +
                         ": pass np.asarray() of it");
}

bool Buffers::add_capsule(const py::handle& item, View& view) {
  if (!py::hasattr(item, "__dlpack__") || !py::hasattr(item, "__dlpack_device__")) return false;
  if (is_of_jax(item)) check_jax(item);
  const py::object device = item.attr("__dlpack_device__")();
  dlpack::Device where{};
  if (!device_of(device, where))
    throw py::type_error(here() + " must give its device as a pair of integers, not as " +
                         shown(device));
  if (!on_cpu(where))
    throw py::type_error(here() + " must be on the CPU, not on " + device_name(where));
  py::object source = py::reinterpret_borrow<py::object>(item);
  if (py::hasattr(item, "requires_grad") && py::bool_(item.attr("requires_grad")))
    source = item.attr("detach")();
  py::object capsule;
  try {
    capsule = source.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // it knows no versions
    capsule = source.attr("__dlpack__")();
  }
  bool read_only = false;
  // The capsule is kept, not renamed: it frees the tensor.
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto& managed = *static_cast<dlpack::VersionedTensor*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed.version.major > 1)
      throw py::type_error(here() + " speaks DLPack " + std::to_string(managed.version.major) +
                           ", not 1");
    read_only = managed.flags & (dlpack::kReadOnly | dlpack::kCopied);
    take(&managed.tensor, item, view);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    // Old producers cannot say so, but JAX's arrays are immutable.
    read_only = is_of_jax(item);
    take(&static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))
              ->tensor,
         item, view);
  } else {
    throw py::type_error(here() + " gives no DLPack tensor but " + shown(capsule));
  }
  const char* const copied = "array of JAX, which never changes: pass a copy, np.array() of it";
  if (writable_ && read_only)
    throw py::value_error(here() + " must be writable, not a read-only " +
                          (is_of_jax(item) ? copied : type_name(item)));
  owners.push_back(std::move(capsule));
  return true;
}

void Buffers::add(const py::handle& item, const py::handle& key) {
  current_key_ = key;
  if (item.is_none()) {
    if (!is_flat()) note(Kind::kNone, key, 0);
    ++length_;
    return;
  }
  if (PyTypeObject* const type = Py_TYPE(item.ptr()); type != last_type_) {
    last_type_ = type;
    last_api_ = nullptr;
    const bool array = py::isinstance<py::array>(item);
    const bool plain = type == &PyDict_Type || type == &PyList_Type || type == &PyTuple_Type;
    if (!array && !plain) last_api_ = exchange_api(type);
    if (plain || (!array && !last_api_ && !py::hasattr(item, "__dlpack__") &&
                  container_kind(item) != Kind::kOne)) {
      last_type_ = nullptr;  // so that nothing else has to be asked whether it is one
      return enter(item, key);
    }
    if (array && type != py::detail::npy_api::get().PyArray_Type_ &&
        py::isinstance(item, py::module_::import("numpy.ma").attr("MaskedArray"))) {
      last_type_ = nullptr;
      throw py::type_error(here() + " must be a plain array, not a " + type_name(item) +
                           ", whose masked elements would count as well: pass its .data, or what "
                           "filled() gives");
    }
    last_source_ = array ? Source::kArray : last_api_ ? Source::kExchange : Source::kCapsule;
  }
  View& view = views.emplace_back();  // not a copy: that waits for each of its parts
  if (last_source_ == Source::kExchange)
    add_exchanged(item, view);
  else if (last_source_ == Source::kArray)
    add_array(item, view);
  else if (!add_capsule(item, view))
    refuse(here(), item);
  if (view.count > 0 && !view.data)
    throw py::value_error(here() + " must have memory, but is a " + type_name(item) +
                          " without any");
  set_dense(view);
  // Of the imaginary part of a conjugate, PyTorch only notes that its sign is meant to be the
  // other.
  if ((!view.dense || view.count == 1) && last_source_ != Source::kArray &&
      py::hasattr(item, "is_neg") && py::bool_(item.attr("is_neg")()))
    throw py::type_error(here() + " must be a tensor as it lies in memory, not one with the " +
                         "negative bit: call resolve_neg() first");
  if (is_flat()) {
    positions_.push_back(length_);
  } else {
    positions_.push_back(within_ == 0 ? length_ : outermost_);
    note(Kind::kOne, key, size() - 1);
  }
  ++length_;
}

}  // namespace vegrad
