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

[[noreturn]] void refuse_none(const std::string& label) {
  throw py::type_error(label + " must be an array or a CPU tensor, not NoneType");
}

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

void Buffers::add_items(const py::handle& container) {
  // A list of one's own: another thread may change the user's while kernels run.
  const bool named = kind_ == Kind::kMapping;
  const auto items = py::reinterpret_steal<py::object>(named ? PyMapping_Items(container.ptr())
                                                             : PySequence_List(container.ptr()));
  if (!items) refuse_unreadable(container);
  owners.push_back(items);
  const Py_ssize_t length = PyList_GET_SIZE(items.ptr());
  if (within_ == 0) reserve(length);
  for (Py_ssize_t i = 0; i < length; ++i) {
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

std::size_t Buffers::length_of(std::size_t sequence) const {
  std::size_t length = 0;
  for (std::size_t i = sequence + 1; i < after(sequence); i = after(i)) ++length;
  return length;
}

void Buffers::miss(const Buffers& other, std::size_t mapping, std::size_t theirs,
                   std::size_t entry) const {
  throw py::value_error(other.path(theirs) + " must have the names of " + path(mapping) +
                        ", but has no " + part(Kind::kMapping, entries_[entry].key, 0));
}

// Two mappings' entries by their keys, in whatever order; one that is None need not be there.
void Buffers::pair_named(const Buffers& other, std::size_t mapping, std::size_t theirs,
                         std::vector<std::size_t>& places) const {
  py::dict found;
  for (std::size_t i = theirs + 1; i < other.after(theirs); i = other.after(i))
    found[other.entries_[i].key] = i;
  for (std::size_t i = mapping + 1; i < after(mapping); i = after(i)) {
    const py::object& key = entries_[i].key;
    const py::object place = found.contains(key) ? py::object(found[key]) : py::none();
    if (!place.is_none()) {
      pair(other, i, py::cast<std::size_t>(place), places);
      found[key] = py::none();
    } else if (entries_[i].kind != Kind::kNone) {
      miss(other, mapping, theirs, i);
    }
  }
  for (const auto& [key, place] : found) {
    if (place.is_none()) continue;
    const auto entry = py::cast<std::size_t>(place);
    if (other.entries_[entry].kind != Kind::kNone) other.miss(*this, theirs, mapping, entry);
  }
}

void Buffers::pair(const Buffers& other, std::size_t entry, std::size_t theirs,
                   std::vector<std::size_t>& places) const {
  const Kind kind = entries_[entry].kind;
  if (kind == Kind::kNone) return;
  if (const Kind given = other.entries_[theirs].kind; given != kind) {
    if (kind == Kind::kOne && given == Kind::kNone) refuse_none(other.path(theirs));
    throw py::type_error(other.path(theirs) + " must be " + kind_name(kind) + " like " +
                         path(entry) + ", not " + kind_name(given));
  }
  if (kind == Kind::kOne) {
    places[entries_[entry].number] = other.entries_[theirs].number;
  } else if (kind == Kind::kMapping) {
    pair_named(other, entry, theirs, places);
  } else {
    const std::size_t length = length_of(entry), given = other.length_of(theirs);
    if (given != length)
      throw py::value_error(other.path(theirs) + " must have " + std::to_string(length) +
                            " entries like " + path(entry) + ", not " + std::to_string(given));
    for (std::size_t i = entry + 1, j = theirs + 1; i < after(entry);
         i = after(i), j = other.after(j))
      pair(other, i, j, places);
  }
}

void Buffers::pair_flat(const Buffers& other, std::vector<std::size_t>& places) const {
  if (other.length_ != length_)
    throw py::value_error(std::string(other.argument_) + " must have " + std::to_string(length_) +
                          " entries like " + argument_ + ", not " + std::to_string(other.length_));
  std::size_t next = 0;
  for (std::size_t i = 0; i < size(); ++i) {
    while (next < other.size() && other.positions_[next] < positions_[i]) ++next;
    if (next == other.size() || other.positions_[next] != positions_[i])
      refuse_none(other.argument_ + part(kind_, {}, positions_[i]));
    places[i] = next;
  }
}

Buffers Buffers::matched(const char* argument, const py::object& object, bool writable) {
  Buffers other(argument, object, writable), result;
  if (other.kind_ != kind_)
    throw py::type_error(std::string(argument) + " must be " + kind_name(kind_) + " like " +
                         argument_ + ", not " + kind_name(other.kind_));
  std::vector<std::size_t> places(size());
  if (is_flat() && other.is_flat()) {
    pair_flat(other, places);
  } else {
    if (is_flat()) plant();
    if (other.is_flat()) other.plant();
    pair(other, 0, 0, places);
  }
  result.argument_ = argument;
  result.kind_ = kind_;
  result.length_ = length_;
  result.entries_ = entries_;
  result.leaves_ = leaves_;
  result.positions_ = positions_;
  result.owners = std::move(other.owners);
  result.axes_ = std::move(other.axes_);
  result.views.reserve(size());
  for (std::size_t i = 0; i < size(); ++i) {
    const View &mine = views[i], &theirs = other.views[places[i]];
    bool same = mine.ndim == theirs.ndim;
    for (int axis = 0; same && axis < mine.ndim; ++axis)
      same = mine.shape[axis] == theirs.shape[axis];
    if (!same) {
      const auto shape = [](const View& view) {
        py::tuple sizes(view.ndim);
        for (int axis = 0; axis < view.ndim; ++axis) sizes[axis] = view.shape[axis];
        return std::string(py::str(sizes));
      };
      throw py::value_error(result.label(i) + " must have the shape of " + label(i) + ", " +
                            shape(mine) + ", not " + shape(theirs));
    }
    result.views.push_back(theirs);
  }
  return result;
}

}  // namespace vegrad
