#include "bindings/buffers.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <atomic>

#include "bindings/attribute.hpp"
#include "bindings/dlpack.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

constexpr const char* kDtypes = "float16, bfloat16, float32 or float64";

std::string type_name(const py::handle& object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

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
  return py::str(item.attr("dtype"));  // newer kinds have many names
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

void set_memory(const dlpack::Tensor& tensor, View& view) {
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  view.ndim = tensor.ndim;
  view.strides_in_bytes = false;
}

// The table of a type whose tensors can be looked at without a Python object for each.
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

std::int64_t product(const std::int64_t* shape, int ndim) {
  std::int64_t count = 1;
  for (int axis = 0; axis < ndim; ++axis) count *= shape[axis];
  return count;
}

}  // namespace

std::string Buffers::label_of(const py::handle& key, std::int64_t position) const {
  if (kind_ == Kind::kOne) return argument_;
  if (kind_ == Kind::kSequence) return argument_ + ("[" + std::to_string(position) + "]");
  const std::string text = py::isinstance<py::str>(key) ? "\"" + std::string(py::str(key)) + "\""
                                                        : std::string(py::repr(key));
  return argument_ + ("[" + text + "]");
}

std::string Buffers::label(std::size_t number) const {
  return label_of(kind_ == Kind::kMapping ? keys_[number] : py::object(), positions_[number]);
}

py::object Buffers::key(std::size_t number) const {
  if (kind_ == Kind::kOne) return py::none();
  if (kind_ == Kind::kMapping) return keys_[number];
  return py::int_(positions_[number]);
}

py::list Buffers::keys() const {
  py::list names;
  for (std::size_t i = 0; i < size(); ++i)
    names.append(kind_ == Kind::kMapping ? py::str(keys_[i])
                                         : py::str(std::to_string(positions_[i])));
  return names;
}

py::list Buffers::present() const {
  const auto all = py::reinterpret_borrow<py::list>(owners.front());
  if (all.size() == size()) return all;
  py::list found(size());
  for (std::size_t i = 0; i < size(); ++i) found[i] = all[positions_[i]];
  return found;
}

Glance::Glance(const py::type& type)
    : type_(type), api_(exchange_api(reinterpret_cast<PyTypeObject*>(type.ptr()))) {}

bool Glance::operator()(PyObject* object, View& view) const {
  const auto* api = static_cast<const dlpack::ExchangeApi*>(api_);
  if (!api || reinterpret_cast<PyObject*>(Py_TYPE(object)) != type_.ptr()) return false;
  dlpack::Tensor tensor{};
  if (api->tensor_from_object(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  if (!on_cpu(tensor.device) || !dtype_of(tensor.dtype, view.dtype)) return false;
  set_memory(tensor, view);
  view.count = product(view.shape, view.ndim);
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
  set_memory(tensor, view);
}

void Buffers::add_array(const py::handle& item, View& view) {
  const auto array = py::reinterpret_borrow<py::array>(item);
  if (!dtype_of(array.dtype(), view.dtype))
    throw py::type_error(here() + " must be " + kDtypes + ", not " +
                         std::string(py::str(array.dtype())));
  if (writable_ && !array.writeable())
    throw py::value_error(here() + " must be writable, not a read-only array");
  view.data = static_cast<char*>(const_cast<void*>(array.data()));
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));
  view.shape = reinterpret_cast<const std::int64_t*>(array.shape());
  view.strides = reinterpret_cast<const std::int64_t*>(array.strides());
  view.ndim = std::int32_t(array.ndim());
  view.strides_in_bytes = true;
}

void Buffers::add_exchanged(const py::handle& item, View& view) {
  const auto* api = static_cast<const dlpack::ExchangeApi*>(last_api_);
  dlpack::Tensor tensor{};
  if (api->tensor_from_object(item.ptr(), &tensor) != 0) {
    std::string reason = "it gives no reason";
    if (PyErr_Occurred()) {
      const py::error_already_set error;
      reason = py::str(error.value());
      reason = reason.substr(0, reason.find('\n'));
    }
    if (py::hasattr(item, "device")) {
      const std::string device = py::str(item.attr("device"));
      if (device != "cpu") throw py::type_error(here() + " must be on the CPU, not on " + device);
    }
    if (py::hasattr(item, "layout")) {
      const std::string layout = py::str(item.attr("layout"));
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
  const py::tuple device = item.attr("__dlpack_device__")();
  const dlpack::Device where{py::int_(device[0]).cast<std::int32_t>(),
                             py::int_(device[1]).cast<std::int32_t>()};
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
    throw py::type_error(here() + " gives no DLPack tensor but " + std::string(py::repr(capsule)));
  }
  if (writable_ && read_only)
    throw py::value_error(here() + " must be writable, not a read-only " + type_name(item));
  owners.push_back(std::move(capsule));
  return true;
}

void Buffers::add(const py::handle& item, const py::handle& key) {
  current_key_ = key;
  if (item.is_none()) {
    if (kind_ == Kind::kMapping) {
      if (!skipped_) skipped_ = py::set();
      py::reinterpret_borrow<py::set>(skipped_).add(key);
    }
    ++length_;
    return;
  }
  if (PyTypeObject* const type = Py_TYPE(item.ptr()); type != last_type_) {
    last_type_ = type;
    last_api_ = nullptr;
    last_door_ = py::isinstance<py::array>(item)    ? Door::kArray
                 : (last_api_ = exchange_api(type)) ? Door::kExchange
                                                    : Door::kCapsule;
  }
  View& view = views.emplace_back();  // not a copy: that waits for each of its parts
  if (last_door_ == Door::kExchange)
    add_exchanged(item, view);
  else if (last_door_ == Door::kArray)
    add_array(item, view);
  else if (!add_capsule(item, view))
    throw py::type_error(here() + " must be an array or a CPU tensor, not " + type_name(item));
  view.count = product(view.shape, view.ndim);
  if (view.count > 0 && !view.data)
    throw py::value_error(here() + " must have memory, but is a " + type_name(item) +
                          " without any");
  set_dense(view);
  // Of the imaginary part of a conjugate, PyTorch only notes that its sign is meant to be the
  // other.
  if (!view.dense && !view.strides_in_bytes && py::hasattr(item, "is_neg") &&
      py::bool_(item.attr("is_neg")()))
    throw py::type_error(here() + " must be a tensor as it lies in memory, not one with the " +
                         "negative bit: call resolve_neg() first");
  positions_.push_back(length_++);
  if (kind_ == Kind::kMapping) keys_.push_back(py::reinterpret_borrow<py::object>(key));
}

Buffers::Buffers(const char* argument, const py::object& object, bool writable)
    : argument_(argument), writable_(writable) {
  const auto is_buffer = [&] {
    return py::isinstance<py::array>(object) || exchange_api(Py_TYPE(object.ptr())) ||
           py::hasattr(object, "__dlpack__");
  };
  if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr())) {
    kind_ = Kind::kSequence;
  } else if (PyDict_Check(object.ptr())) {
    kind_ = Kind::kMapping;
  } else if (is_buffer()) {
    owners.push_back(object);
    add(object, {});
    return;
  } else if (py::isinstance<py::str>(object) || py::isinstance<py::bytes>(object) ||
             object.is_none() || !py::hasattr(object, "__iter__")) {
    throw py::type_error(std::string(argument) +
                         " must be an array, a CPU tensor, or a sequence or mapping of them, not " +
                         type_name(object));
  } else {
    const py::object mapping = py::module_::import("collections.abc").attr("Mapping");
    kind_ = py::isinstance(object, mapping) ? Kind::kMapping : Kind::kSequence;
  }
  if (kind_ == Kind::kMapping) {
    const auto items = py::reinterpret_steal<py::object>(PyMapping_Items(object.ptr()));
    if (!items) throw py::error_already_set();
    owners.push_back(items);
    for (const py::handle item : items) {
      const auto pair = py::reinterpret_borrow<py::tuple>(item);
      add(pair[1], pair[0]);
    }
    return;
  }
  // A list of one's own: another thread may change the user's while kernels run.
  const auto items = py::reinterpret_steal<py::object>(PySequence_List(object.ptr()));
  if (!items) throw py::error_already_set();
  const Py_ssize_t length = PyList_GET_SIZE(items.ptr());
  if (length == 0 && PyIter_Check(object.ptr()))
    throw py::value_error(std::string(argument) +
                          " must be a sequence, a mapping or a fresh iterator of buffers, not a " +
                          type_name(object) + " that yields nothing");
  owners.push_back(items);
  reserve(length);
  for (Py_ssize_t i = 0; i < length; ++i) add(PyList_GET_ITEM(items.ptr(), i), {});
}

Buffers::Buffers(const char* argument, const py::list& holders, const char* attribute,
                 bool writable)
    : argument_(argument), writable_(writable), kind_(Kind::kSequence) {
  const std::size_t length = holders.size();
  Attribute of(attribute);
  const py::list items(length);
  owners.push_back(items);
  reserve(length);
  for (std::size_t i = 0; i < length; ++i) {
    // Another thread may have made the list shorter.
    const auto holder = py::reinterpret_borrow<py::object>(
        i < holders.size() ? PyList_GET_ITEM(holders.ptr(), i) : Py_None);
    PyObject* const item = holder.is_none() ? Py_NewRef(Py_None) : of.get(holder.ptr());
    if (!item) throw py::error_already_set();
    PyList_SET_ITEM(items.ptr(), i, item);
    add(item, {});
  }
}

void Buffers::reserve(std::size_t length) {
  views.reserve(length);
  positions_.reserve(length);
  if (length >= kMany) wake_threads();
}

Buffers Buffers::matched(const char* argument, const py::object& object, bool writable) const {
  Buffers other(argument, object, writable), result;
  const auto kind = [](const Buffers& buffers) {
    return buffers.kind_ == Kind::kOne       ? "one buffer"
           : buffers.kind_ == Kind::kMapping ? "a mapping"
                                             : "a sequence";
  };
  if (other.kind_ != kind_)
    throw py::type_error(std::string(argument) + " must be " + kind(*this) + " like " + argument_ +
                         ", not " + kind(other));
  if (kind_ == Kind::kSequence && other.length_ != length_)
    throw py::value_error(std::string(argument) + " must have " + std::to_string(length_) +
                          " entries like " + argument_ + ", not " + std::to_string(other.length_));
  py::dict place;
  if (kind_ == Kind::kMapping) {
    py::set mine = skipped_ ? py::set(skipped_) : py::set();
    for (const py::object& key : keys_) mine.add(key);
    for (std::size_t i = 0; i < other.size(); ++i) place[other.keys_[i]] = i;
    for (std::size_t i = 0; i < size(); ++i)
      if (!place.contains(keys_[i]) && !(other.skipped_ && other.skipped_.contains(keys_[i])))
        throw py::value_error(std::string(argument) + " must have the names of " + argument_ +
                              ", but has no " +
                              label_of(keys_[i], 0).substr(std::string(argument_).size()));
    for (std::size_t i = 0; i < other.size(); ++i) {
      if (!mine.contains(other.keys_[i]))
        throw py::value_error(
            std::string(argument_) + " must have the names of " + argument + ", but has no " +
            other.label_of(other.keys_[i], 0).substr(std::string(argument).size()));
    }
  }
  result.argument_ = argument;
  result.kind_ = kind_;
  result.length_ = length_;
  result.owners = std::move(other.owners);
  std::size_t next = 0;
  for (std::size_t i = 0; i < size(); ++i) {
    std::size_t j = 0;
    bool found = true;
    if (kind_ == Kind::kMapping) {
      found = place.contains(keys_[i]);
      if (found) j = py::cast<std::size_t>(place[keys_[i]]);
    } else {
      while (next < other.size() && other.positions_[next] < positions_[i]) ++next;
      found = next < other.size() && other.positions_[next] == positions_[i];
      j = next;
    }
    std::string name = label(i).substr(std::string(argument_).size());
    if (!found)
      throw py::type_error(argument + name + " must be an array or a CPU tensor, not NoneType");
    const View &mine = views[i], &theirs = other.views[j];
    bool same = mine.ndim == theirs.ndim;
    for (int axis = 0; same && axis < mine.ndim; ++axis)
      same = mine.shape[axis] == theirs.shape[axis];
    if (!same) {
      const auto shape = [](const View& view) {
        py::tuple sizes(view.ndim);
        for (int axis = 0; axis < view.ndim; ++axis) sizes[axis] = view.shape[axis];
        return std::string(py::str(sizes));
      };
      throw py::value_error(argument + name + " must have the shape of " + label(i) + ", " +
                            shape(mine) + ", not " + shape(theirs));
    }
    result.views.push_back(theirs);
    result.positions_.push_back(positions_[i]);
    if (kind_ == Kind::kMapping) result.keys_.push_back(keys_[i]);
  }
  return result;
}

}  // namespace vegrad
