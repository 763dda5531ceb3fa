#include "bindings/tensors.hpp"

#include <pybind11/numpy.h>

#include <atomic>
#include <cstdint>

#include "bindings/buffers.hpp"
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

bool on_cpu(dlpack::Device device) {
  return device.type == dlpack::kCpu || device.type == dlpack::kCudaHost ||
         device.type == dlpack::kRocmHost;
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

bool dtype_of(dlpack::DataType type, Dtype& dtype) {
  const auto [code, bits, lanes] = type;
  if (lanes != 1) return false;
  if (code == dlpack::kBfloat && bits == 16)
    dtype = Dtype::kBfloat16;
  else if (code == dlpack::kFloat && (bits == 16 || bits == 32 || bits == 64))
    dtype = bits == 16 ? Dtype::kFloat16 : bits == 32 ? Dtype::kFloat32 : Dtype::kFloat64;
  else
    return false;
  return true;
}

std::string tuple_of(const std::int64_t* numbers, int n) {
  py::tuple all(n);
  for (int i = 0; i < n; ++i) all[i] = numbers[i];
  return py::str(all);
}

// What is wrong with the shape, the strides or the address that a tensor claims to have, as the end
// of a message; empty if nothing is. What passes can be walked over without an overflow.
std::string flaw_of(const dlpack::Tensor& tensor, std::int64_t itemsize) {
  const std::int32_t ndim = tensor.ndim;
  if (ndim < 0 || ndim > kMostAxes)
    return "must have from 0 to " + std::to_string(kMostAxes) + " axes, not " +
           std::to_string(ndim);
  if (ndim > 0 && !tensor.shape)
    return "must have a shape, not a null pointer for " + std::to_string(ndim) + " axes";
  std::int64_t bytes = itemsize, below = 0, above = 0;
  bool empty = false, fits = true;
  for (int axis = 0; axis < ndim; ++axis) {
    const std::int64_t size = tensor.shape[axis];
    if (size < 0) return "must have no negative size, not shape " + tuple_of(tensor.shape, ndim);
    empty |= size == 0;
    if (size == 0) continue;  // the others must fit all the same, as NumPy wants it, too
    if (__builtin_mul_overflow(bytes, size, &bytes))
      return "must have less than 2^63 bytes, not shape " + tuple_of(tensor.shape, ndim);
    if (!tensor.strides || size == 1) continue;
    std::int64_t step, length;
    fits &= !__builtin_mul_overflow(tensor.strides[axis], itemsize, &step) &&
            !__builtin_mul_overflow(step, size, &length);
    if (fits) length -= step;
    std::int64_t& end = fits && step < 0 ? below : above;
    fits &= fits && !__builtin_add_overflow(end, length, &end);
    if (!fits)
      return "must lie within 2^63 bytes, not at strides " + tuple_of(tensor.strides, ndim);
  }
  if (empty || !tensor.data) return {};
  if (!tensor.strides) above = bytes - itemsize;
  std::uint64_t first, last;
  if (__builtin_add_overflow(std::uint64_t(tensor.data), tensor.byte_offset, &first) ||
      first < 0 - std::uint64_t(below) ||
      __builtin_add_overflow(first, std::uint64_t(above) + std::uint64_t(itemsize), &last) ||
      last > std::uint64_t(INT64_MAX))
    return "must lie within the address space, not " + std::to_string(tensor.byte_offset) +
           " bytes behind address " + std::to_string(std::uint64_t(tensor.data));
  return {};
}

// The shape as a copy of ours, of elements that follow each other in C order.
void copy_shape(const std::int64_t* shape, AxisStore& axes, View& view) {
  const int n = view.ndim;
  std::int64_t* const copy = axes.take(n);
  std::int64_t count = 1;
  for (int axis = 0; axis < n; ++axis) {
    const std::int64_t size = shape[axis];
    copy[axis] = size;
    count *= size;
  }
  view.shape = copy;
  view.count = count;
}

// Shape and strides (`unit` bytes each) as copies of ours; no strides if they say no more than the
// shape.
void copy_axes(const std::int64_t* shape, const std::int64_t* strides, std::int64_t unit,
               AxisStore& axes, View& view) {
  copy_shape(shape, axes, view);
  if (!strides) return;
  const int n = view.ndim;
  std::int64_t* const copy = axes.take(n);
  std::int64_t expected = view.itemsize();
  bool contiguous = true;
  for (int axis = n - 1; axis >= 0; --axis) {
    const std::int64_t size = view.shape[axis];
    // Of a single element the stride means nothing, and may be anything.
    const std::int64_t stride = size == 1 ? 0 : strides[axis] * unit;
    copy[axis] = stride;
    contiguous &= size == 1 || stride == expected;
    expected *= size;
  }
  if (!contiguous) view.strides = copy;
}

void set_memory(const dlpack::Tensor& tensor, AxisStore& axes, View& view) {
  // In numbers: an offset that is nonsense (of a tensor without elements) may wrap.
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data);
  view.data = begin ? reinterpret_cast<char*>(begin + tensor.byte_offset) : nullptr;
  view.ndim = tensor.ndim;
  copy_axes(tensor.shape, tensor.strides, view.itemsize(), axes, view);
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
  if (!on_cpu(tensor.device) || !dtype_of(tensor.dtype, view.dtype)) return false;
  if (!flaw_of(tensor, view.itemsize()).empty()) return false;
  set_memory(tensor, axes, view);
  if (view.count > 0 && !view.data) return false;
  set_dense(view);
  return view.dense;
}

void Buffers::take(const void* pointer, const py::handle& item, View& view) {
  const auto& tensor = *static_cast<const dlpack::Tensor*>(pointer);
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
  const auto array = py::reinterpret_borrow<py::array>(item);
  if (!dtype_of(array.dtype(), view.dtype)) {
    const bool native = py::cast<bool>(array.dtype().attr("isnative"));
    throw py::type_error(
        here() + " must be " + kDtypes + ", not " + visible(py::str(array.dtype())) +
        (native ? "" : ", whose bytes are in the other order than this machine's"));
  }
  if (writable_ && !array.writeable())
    throw py::value_error(here() + " must be writable, not a read-only array");
  view.data = static_cast<char*>(const_cast<void*>(array.data()));
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));
  view.ndim = std::int32_t(array.ndim());
  if (view.ndim > kMostAxes)
    throw py::value_error(here() + " must have at most " + std::to_string(kMostAxes) +
                          " axes, not " + std::to_string(view.ndim));
  // Copied while we hold the lock: `array.shape = …` on another thread frees NumPy's own.
  const auto* const shape = reinterpret_cast<const std::int64_t*>(array.shape());
  if (array.flags() & py::array::c_style) return copy_shape(shape, axes_, view);
  copy_axes(shape, reinterpret_cast<const std::int64_t*>(array.strides()), 1, axes_, view);
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

bool Buffers::add_capsule(const py::handle& item, View& view) {
  if (!py::hasattr(item, "__dlpack__") || !py::hasattr(item, "__dlpack_device__")) return false;
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
    read_only =
        std::string(py::str(py::type::handle_of(item).attr("__module__"))).rfind("jax", 0) == 0;
    take(&static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))
              ->tensor,
         item, view);
  } else {
    throw py::type_error(here() + " gives no DLPack tensor but " + shown(capsule));
  }
  if (writable_ && read_only)
    throw py::value_error(here() + " must be writable, not a read-only " + type_name(item));
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
  if (!view.dense && last_source_ != Source::kArray && py::hasattr(item, "is_neg") &&
      py::bool_(item.attr("is_neg")()))
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
