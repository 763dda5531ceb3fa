// What the rescaled path (rescaled.hpp) makes of numbers and matrices on both ways.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "core/network/scaled_activations.hpp"
#include "core/network/scaling.hpp"

namespace vegrad {

inline std::int64_t exponent_of(double x) { return ScaledNumber{x, 0}.size(); }

inline double value_in(const ScaledNumber& x, std::int64_t unit) {
  return shifted(x.mantissa, x.exponent - unit);
}

constexpr int kUnscaledExponent = 20;  // operands within it go into a product as they are

struct Extent {
  std::int64_t exponent = kNoExponent;  // the largest of any element
  bool finite = true;
};

template <class T>
Extent extent(const T* data, std::ptrdiff_t ld, int rows, int columns) {
  double largest = 0;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      const double x = std::fabs(double(data[i * ld + j]));
      if (!(x <= std::numeric_limits<T>::max())) return {kNoExponent, false};
      largest = std::max(largest, x);
    }
  return {exponent_of(largest), true};
}

// An operand of a product, and the exponent that was taken from it.
template <class T>
struct Operand {
  const T* data;
  std::int64_t exponent = 0;
  bool finite = true;
};

// `data` as it stands or, if it is far from 1, as a scaled copy.
template <class T>
Operand<T> scaled_operand(const T* data, std::ptrdiff_t ld, int rows, int columns,
                          std::vector<T>& copy) {
  const Extent found = extent(data, ld, rows, columns);
  if (!found.finite) return {data, 0, false};
  if (found.exponent == kNoExponent || std::abs(found.exponent) <= kUnscaledExponent) return {data};
  copy.assign(rows * ld, T(0));
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      copy[i * ld + j] = T(shifted(double(data[i * ld + j]), -found.exponent));
  return {copy.data(), found.exponent};
}

}  // namespace vegrad
