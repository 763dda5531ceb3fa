// The recurrent network of either dtype behind one class, and what its passes read.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "bindings/arrays.hpp"
#include "core/recurrent/recurrent.hpp"

namespace vegrad {

class AnyRecurrent {
 public:
  AnyRecurrent(int inputs, int hidden, int outputs, const std::string& cell, int layers,
               const std::string& targets, const std::string& loss, const std::string& dtype);

  template <class Body>
  auto visit(const Body& body) const {
    return std::visit([&](const auto& network) { return body(*network); }, network_);
  }

 private:
  std::variant<std::unique_ptr<Recurrent<float>>, std::unique_ptr<Recurrent<double>>> network_;
};

template <class T>
T element(const Recurrent<T>&);
template <class N>
using RecurrentElement = decltype(element(std::declval<const N&>()));

// The data of a contiguous array of T with this shape; null if the object is something else.
template <class T>
const T* shaped(const pybind11::object& object, std::initializer_list<pybind11::ssize_t> shape) {
  if (!is_plain(object) || !pybind11::isinstance<pybind11::array_t<T>>(object)) return nullptr;
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(object);
  if (!(array.flags() & pybind11::array::c_style) ||
      array.ndim() != pybind11::ssize_t(shape.size()))
    return nullptr;
  pybind11::ssize_t axis = 0;
  for (const pybind11::ssize_t n : shape)
    if (array.shape(axis++) != n && n >= 0) return nullptr;
  return static_cast<const T*>(array.data());
}

// What a pass reads, if the objects are arrays as it needs them: see Sequences. Targets beyond a
// row's length are not looked at.
template <class T>
struct SequenceBatch {
  Sequences<T> all{};
  bool fits = false;

  SequenceBatch(const RecurrentShape& shape, const pybind11::object& x,
                const pybind11::object& lengths, const pybind11::object& state,
                const pybind11::object* target) {
    all.x = shaped<T>(x, {-1, -1, shape.inputs});
    if (!all.x) return;
    const auto array = pybind11::reinterpret_borrow<pybind11::array>(x);
    const pybind11::ssize_t B = array.shape(0), steps = array.shape(1), most = 1 << 30;
    if (B < 1 || B > most || steps < 1 || steps > most) return;
    all.rows = int(B);
    all.steps = int(steps);
    if (!lengths.is_none()) {
      all.lengths = shaped<std::int64_t>(lengths, {B});
      if (!all.lengths || !std::all_of(all.lengths, all.lengths + B,
                                       [=](std::int64_t n) { return n >= 1 && n <= steps; }))
        return;
    }
    fits = state_fits(shape, state) && (!target || target_fits(shape, *target));
  }

 private:
  bool state_fits(const RecurrentShape& shape, const pybind11::object& state) {
    if (state.is_none()) return true;
    if (!pybind11::isinstance<pybind11::tuple>(state)) return false;
    const auto parts = pybind11::reinterpret_borrow<pybind11::tuple>(state);
    if (parts.size() != (shape.has_c() ? 2u : 1u)) return false;
    all.h = shaped<T>(parts[0], {shape.layers, all.rows, shape.hidden});
    if (shape.has_c()) all.c = shaped<T>(parts[1], {shape.layers, all.rows, shape.hidden});
    return all.h && (all.c || !shape.has_c());
  }

  // Calls found(index of the first element) for each target that is looked at.
  template <class Found>
  bool each_target(const RecurrentShape& shape, int n, const Found& found) const {
    for (int i = 0; i < all.rows; ++i) {
      const std::ptrdiff_t steps = shape.targets_all ? all.steps : 1;
      const std::ptrdiff_t there =
          shape.targets_all && all.lengths ? std::ptrdiff_t(all.lengths[i]) : steps;
      for (std::ptrdiff_t k = i * steps * n; k < (i * steps + there) * n; ++k)
        if (!found(k)) return false;
    }
    return true;
  }

  bool target_fits(const RecurrentShape& shape, const pybind11::object& target) {
    const int O = shape.outputs;
    if (shape.loss == Loss::cross_entropy) {
      all.labels = shape.targets_all ? shaped<std::int64_t>(target, {all.rows, all.steps})
                                     : shaped<std::int64_t>(target, {all.rows});
      return all.labels && each_target(shape, 1, [&](std::ptrdiff_t k) {
               return all.labels[k] >= 0 && all.labels[k] < O;
             });
    }
    all.values = shape.targets_all ? shaped<T>(target, {all.rows, all.steps, O})
                                   : shaped<T>(target, {all.rows, O});
    if (!all.values || shape.loss != Loss::binary_cross_entropy) return all.values;
    return each_target(shape, O, [&](std::ptrdiff_t k) {
      return !(all.values[k] < 0 || all.values[k] > 1);  // NaN goes on
    });
  }
};

}  // namespace vegrad
