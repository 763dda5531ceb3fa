// The network of either dtype behind one class, and what its passes read.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/arrays.hpp"
#include "core/network/network.hpp"

namespace vegrad {

class AnyNetwork {
 public:
  AnyNetwork(const std::vector<int>& sizes, const std::string& activation,
             const std::string& output, const std::string& loss,
             const std::optional<std::string>& norm, bool residual, const std::string& dtype);

  template <class Body>
  auto visit(const Body& body) const {
    return std::visit([&](const auto& network) { return body(*network); }, network_);
  }

 private:
  std::variant<std::unique_ptr<Network<float>>, std::unique_ptr<Network<double>>> network_;
};

template <class T>
T element(const Network<T>&);
template <class N>
using ElementOf = decltype(element(std::declval<const N&>()));

// What a pass reads, if the objects are arrays as it needs them: x (B, I) and, unless there is
// none, the target, (B, O) values or (B) labels, all of them in range.
template <class T>
struct Batch {
  int B = 0;
  const T *x = nullptr, *values = nullptr;
  const std::int64_t* labels = nullptr;
  bool fits = false;

  Batch(const NetworkShape& shape, const pybind11::object& inputs, const pybind11::object* target) {
    x = fitting<T>(inputs, -1, shape.sizes.front());
    if (!x) return;
    const pybind11::ssize_t rows = pybind11::reinterpret_borrow<pybind11::array>(inputs).shape(0),
                            most = 1 << 30;
    if (rows < 1 || rows > most) return;
    B = int(rows);
    fits = !target || target_fits(shape, *target);
  }

 private:
  bool target_fits(const NetworkShape& shape, const pybind11::object& target) {
    const int O = shape.sizes.back();
    if (shape.loss == Loss::cross_entropy) {
      labels = fitting<std::int64_t>(target, B, -1);
      return labels &&
             std::all_of(labels, labels + B, [O](std::int64_t i) { return i >= 0 && i < O; });
    }
    values = fitting<T>(target, B, O);
    if (!values || shape.loss != Loss::binary_cross_entropy) return values;
    return std::all_of(values, values + std::size_t(B) * O,
                       [](T t) { return !(t < 0 || t > 1); });  // NaN goes on
  }
};

}  // namespace vegrad
