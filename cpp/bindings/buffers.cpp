#include "bindings/buffers.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/attribute.hpp"
#include "bindings/tensors.hpp"
#include "bindings/visible.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

constexpr std::size_t kLongPath = 200;

// The name by which something of a buffer is kept.
py::str name_of(const py::handle& key) {
  try {
    return py::str(key);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    const std::string said =
        "keys of a mapping must have a text, but a " + type_name(key) + " has none";
    py::raise_from(error, PyExc_TypeError, said.c_str());
    throw py::error_already_set();
  }
}

}  // namespace

std::string Buffers::part(Kind container, const py::handle& key, std::int64_t position) {
  if (container == Kind::kSequence) return "[" + std::to_string(position) + "]";
  if (PyUnicode_Check(key.ptr())) return "[\"" + visible(key) + "\"]";
  return "[" + shown(key) + "]";
}

std::string Buffers::path(std::size_t entry) const {
  std::vector<std::string> parts;  // from the inside out
  std::size_t length = 0;
  for (; entry != 0; entry = entries_[entry].parent) {
    const Entry& one = entries_[entry];
    parts.push_back(part(entries_[one.parent].kind, one.key, one.position));
    length += parts.back().size();
  }
  if (length > kLongPath && parts.size() > 4) {
    parts[2] = "\u2026";
    parts.erase(parts.begin() + 3, parts.end() - 2);
  }
  std::string all = argument_;
  for (auto one = parts.rbegin(); one != parts.rend(); ++one) all += *one;
  return all;
}

std::string Buffers::here() const {
  if (kind_ == Kind::kOne) return argument_;
  return (is_flat() ? argument_ : path(within_)) + part(kind_, current_key_, length_);
}

std::string Buffers::label(std::size_t number) const {
  if (!is_flat()) return path(leaves_[number]);
  if (kind_ == Kind::kOne) return argument_;
  return argument_ + part(kind_, {}, positions_[number]);
}

py::object Buffers::key(std::size_t number) const {
  if (kind_ == Kind::kOne) return py::none();
  if (is_flat()) return py::int_(positions_[number]);
  const Entry& entry = entries_[leaves_[number]];
  if (entry.parent != 0) return name(number);
  return kind_ == Kind::kMapping ? entry.key : py::int_(entry.position);
}

py::str Buffers::name(std::size_t number) const {
  if (is_flat()) return py::str(std::to_string(positions_[number]));
  const auto own = [&](const Entry& one) {
    return entries_[one.parent].kind == Kind::kMapping ? name_of(one.key)
                                                       : py::str(std::to_string(one.position));
  };
  const Entry* entry = &entries_[leaves_[number]];
  if (entry->parent == 0) return own(*entry);
  py::list parts;
  parts.append(own(*entry));
  while (entry->parent != 0) {
    entry = &entries_[entry->parent];
    parts.append(own(*entry));
  }
  parts.attr("reverse")();
  return py::str(".").attr("join")(parts);
}

py::list Buffers::names() const {
  py::list all;
  for (std::size_t i = 0; i < size(); ++i) all.append(name(i));
  return all;
}

void Buffers::refuse_one_name(std::size_t number, std::size_t other) const {
  throw py::value_error(label(number) + " and " + label(other) +
                        " must have different names, but both are " + visible(name(number)));
}

py::list Buffers::present() const {
  const auto all = py::reinterpret_borrow<py::list>(owners.front());
  if (all.size() == size()) return all;
  py::list found(size());
  for (std::size_t i = 0; i < size(); ++i) found[i] = all[positions_[i]];
  return found;
}

Buffers::Kind Buffers::container_kind(const py::handle& object) {
  if (PyList_Check(object.ptr()) || PyTuple_Check(object.ptr())) return Kind::kSequence;
  if (PyDict_Check(object.ptr())) return Kind::kMapping;
  if (PyUnicode_Check(object.ptr()) || PyObject_CheckBuffer(object.ptr())) return Kind::kOne;
  const py::module_ abc = py::module_::import("collections.abc");
  return py::isinstance(object, abc.attr("Mapping"))    ? Kind::kMapping
         : py::isinstance(object, abc.attr("Sequence")) ? Kind::kSequence
                                                        : Kind::kOne;
}

const char* Buffers::kind_name(Kind kind) {
  return kind == Kind::kOne        ? "one buffer"
         : kind == Kind::kMapping  ? "a mapping"
         : kind == Kind::kSequence ? "a sequence"
                                   : "None";
}

Buffers::Buffers(const char* argument, const py::object& object, bool writable)
    : argument_(argument), writable_(writable), root_(object.ptr()) {
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
  } else if (py::isinstance<py::str>(object) || PyObject_CheckBuffer(object.ptr()) ||
             object.is_none() || !py::hasattr(object, "__iter__")) {
    refuse(argument, object);
  } else {
    kind_ = container_kind(object) == Kind::kMapping ? Kind::kMapping : Kind::kSequence;
  }
  if (kind_ == Kind::kMapping) plant();
  add_items(object);
  if (length_ == 0 && PyIter_Check(object.ptr()))
    throw py::value_error(std::string(argument) +
                          " must be a sequence, a mapping or a fresh iterator of buffers, not a " +
                          type_name(object) + " that yields nothing");
  if (!is_flat()) entries_[0].number = entries_.size();
}

// The items of a container, those of a mapping with their keys. What is a class of somebody's may
// go on yielding for ever: more than it says are refused, and of one that says nothing, millions.
py::object Buffers::listed(const py::handle& container, bool named) const {
  PyObject* const all = container.ptr();
  if (PyDict_CheckExact(all) || PyList_CheckExact(all) || PyTuple_CheckExact(all)) {
    auto items =
        py::reinterpret_steal<py::object>(named ? PyDict_Items(all) : PySequence_List(all));
    if (!items) throw py::error_already_set();
    return items;
  }
  Py_ssize_t most = kMostItems;
  if (py::hasattr(container, "__len__") && (most = PyObject_Size(all)) < 0) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) refuse_unreadable(container);
    PyErr_Clear();
    most = kMostItems;
  }
  auto source = py::reinterpret_borrow<py::object>(container);
  if (named) source = py::reinterpret_steal<py::object>(PyObject_CallMethod(all, "items", nullptr));
  const auto iterator =
      py::reinterpret_steal<py::object>(source ? PyObject_GetIter(source.ptr()) : nullptr);
  if (!iterator) refuse_unreadable(container);
  py::list items;
  while (PyObject* const item = PyIter_Next(iterator.ptr())) {
    items.append(py::reinterpret_steal<py::object>(item));
    if (PyList_GET_SIZE(items.ptr()) > most)
      throw py::type_error(path(within_) + " must have at most " + std::to_string(most) +
                           " entries, but a " + type_name(container) + " yields more");
  }
  if (PyErr_Occurred()) refuse_unreadable(container);
  return items;
}

void Buffers::add_items(const py::handle& container) {
  // A list of one's own: another thread may change the user's while kernels run.
  const bool named = kind_ == Kind::kMapping;
  const py::object items = listed(container, named);
  owners.push_back(items);
  const Py_ssize_t length = PyList_GET_SIZE(items.ptr());
  if (within_ == 0) reserve(length);
  for (Py_ssize_t i = 0; i < length; ++i) {
    if (last_source_ == Source::kArray && is_flat()) i = add_arrays(items.ptr(), i);
    if (i == length) break;
    PyObject* const item = PyList_GET_ITEM(items.ptr(), i);
    if (named) {
      if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2)
        throw py::type_error(path(within_) + " must be a mapping whose items are pairs, not a " +
                             type_name(item));
      const auto pair = py::reinterpret_borrow<py::tuple>(item);
      add(pair[1], pair[0]);
    } else {
      add(item, {});
    }
  }
}

void Buffers::refuse(const std::string& label, const py::handle& object) {
  const bool memory = PyObject_CheckBuffer(object.ptr()) && !PyBytes_Check(object.ptr()) &&
                      !PyByteArray_Check(object.ptr());
  const char* const hint = memory ? ": pass numpy.asarray() of it" : hint_for(object);
  throw py::type_error(label +
                       " must be an array, a CPU tensor, or a sequence or mapping of them, not " +
                       type_name(object) + hint);
}

// One that is odd: whose keys are not there, or whose length lies. Other errors are those of
// whoever made it.
void Buffers::refuse_unreadable(const py::handle& container) const {
  py::error_already_set error;
  bool odd = false;
  for (PyObject* kind : {PyExc_LookupError, PyExc_ValueError, PyExc_TypeError, PyExc_AttributeError,
                         PyExc_MemoryError, PyExc_OverflowError})
    odd |= error.matches(kind);
  if (!odd || PyIter_Check(container.ptr())) throw error;
  const std::string said = path(within_) + " must be " + kind_name(kind_) +
                           " that can be read, not a " + type_name(container) + " that raises " +
                           shown(error.value());
  py::raise_from(error, PyExc_TypeError, said.c_str());
  throw py::error_already_set();
}

// Notes of what there is so far, now that its positions no longer say it all.
void Buffers::plant() {
  entries_.push_back({0, kind_, {}, 0, 0, root_});
  const std::int64_t length = length_;
  std::size_t next = 0;
  for (length_ = 0; length_ < length; ++length_) {
    const bool buffer = next < size() && positions_[next] == length_;
    note(buffer ? Kind::kOne : Kind::kNone, {}, next);
    next += buffer;
  }
  entries_[0].number = entries_.size();
}

void Buffers::note(Kind kind, const py::handle& key, std::size_t number) {
  if (kind == Kind::kOne) leaves_.push_back(entries_.size());
  entries_.push_back(
      {within_, kind, py::reinterpret_borrow<py::object>(key), length_, number, nullptr});
}

void Buffers::enter(const py::handle& item, const py::handle& key) {
  if (is_flat()) plant();
  int depth = 1;
  for (std::size_t around = within_;; around = entries_[around].parent, ++depth) {
    if (entries_[around].object == item.ptr())
      throw py::type_error(here() + " must not be " + path(around) + " itself, which it lies in");
    if (around == 0) break;
  }
  if (depth == kDeepest)
    throw py::value_error(std::string(argument_) + " must be nested at most " +
                          std::to_string(kDeepest) + " deep, but " + here() + " is a " +
                          type_name(item));
  const Kind kind = container_kind(item), kind_outside = kind_;
  const std::int64_t length_outside = length_;
  const std::size_t outside = within_, inside = entries_.size();
  if (within_ == 0) outermost_ = length_;
  note(kind, key, 0);
  entries_[inside].object = item.ptr();
  within_ = inside;
  kind_ = kind;
  length_ = 0;
  add_items(item);
  entries_[inside].number = entries_.size();
  within_ = outside;
  kind_ = kind_outside;
  length_ = length_outside + 1;
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
  if (!is_flat()) {
    entries_.reserve(length + 1);
    leaves_.reserve(length);
  }
  if (length >= kMany) wake_threads();
}

}  // namespace vegrad
