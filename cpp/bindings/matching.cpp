// Which buffers of one list or mapping belong to those of another.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/buffers.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

[[noreturn]] void refuse_none(const std::string& label) {
  throw py::type_error(label + " must be an array or a CPU tensor, not NoneType");
}

}  // namespace

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

void Buffers::require_shape(std::size_t number, const Buffers& other, const View& theirs) const {
  const View& mine = views[number];
  bool same = mine.ndim == theirs.ndim;
  for (int axis = 0; same && axis < mine.ndim; ++axis)
    same = mine.shape[axis] == theirs.shape[axis];
  if (same) return;
  const auto shape = [](const View& view) {
    py::tuple sizes(view.ndim);
    for (int axis = 0; axis < view.ndim; ++axis) sizes[axis] = view.shape[axis];
    return std::string(py::str(sizes));
  };
  throw py::value_error(other.label(number) + " must have the shape of " + label(number) + ", " +
                        shape(mine) + ", not " + shape(theirs));
}

Buffers Buffers::matched(const char* argument, const py::object& object, bool writable) {
  Buffers other(argument, object, writable), result;
  if (other.kind_ != kind_)
    throw py::type_error(std::string(argument) + " must be " + kind_name(kind_) + " like " +
                         argument_ + ", not " + kind_name(other.kind_));
  const bool in_order =
      is_flat() && other.is_flat() && other.length_ == length_ && other.positions_ == positions_;
  if (in_order) {
    for (std::size_t i = 0; i < size(); ++i) require_shape(i, other, other.views[i]);
    return other;
  }
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
    const View& theirs = other.views[places[i]];
    require_shape(i, result, theirs);
    result.views.push_back(theirs);
  }
  return result;
}

}  // namespace vegrad
