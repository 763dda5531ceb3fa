#include "bindings/buffers.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/attribute.hpp"
#include "bindings/tensors.hpp"

namespace py = pybind11;

namespace vegrad {

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

// Where `other` has each key; ValueError unless both have the same names.
py::dict Buffers::places_in(const char* argument, const Buffers& other) const {
  py::dict place;
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
      throw py::value_error(std::string(argument_) + " must have the names of " + argument +
                            ", but has no " +
                            other.label_of(other.keys_[i], 0).substr(std::string(argument).size()));
  }
  return place;
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
  const py::dict place = kind_ == Kind::kMapping ? places_in(argument, other) : py::dict();
  result.argument_ = argument;
  result.kind_ = kind_;
  result.length_ = length_;
  result.owners = std::move(other.owners);
  result.axes_ = std::move(other.axes_);
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
