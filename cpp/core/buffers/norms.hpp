// Norms that neither overflow nor underflow while every element is finite.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/buffers/buffers.hpp"

namespace vegrad {

// A sum of |x|^p in units of (2^exponent)^p, or a norm in units of 2^exponent. Those that are added
// have the same exponent nearly always: 0.
struct Scaled {
  double sum = 0, exponent = 0;
};

// The p of a norm.
struct Order {
  double p = 2;
  bool is_largest() const { return p == std::numeric_limits<double>::infinity(); }

  Scaled add(Scaled a, Scaled b) const {  // Σ |x|^p, or the largest |x|
    const double sum = a.sum + b.sum;
    if (a.exponent == b.exponent && std::fabs(sum) <= 0x1p1000 && !is_largest())
      return {sum, a.exponent};
    return add_with_care(a, b);
  }
  Scaled root(Scaled total) const {  // the norm, its exponent a whole number
    return p == 2 ? Scaled{std::sqrt(total.sum), total.exponent} : general_root(total);
  }

 private:
  Scaled add_with_care(Scaled a, Scaled b) const;
  Scaled general_root(Scaled total) const;
};

// x · 2^exponent; exact where it fits and the exponent is whole.
double times_power_of_two(double x, double exponent);

// Of a norm.
inline double value(Scaled norm) {  // 0 or inf where a double ends
  return norm.exponent == 0 ? norm.sum : times_power_of_two(norm.sum, norm.exponent);
}
double log2_of(Scaled norm);

// Σ |x|^p of elements `first` to `first + count`, or the largest |x|. NaN if there is one, else inf
// if there is one.
Scaled power_sum(const View& view, std::int64_t first, std::int64_t count, Order order);

// The same of a run whose Σ x² a kernel has found to be `squares`: double may have to look again.
template <class E>
Scaled checked_squares(const RunKernels<E>& kernels, const E* run, std::size_t n, double squares) {
  if constexpr (sizeof(E) < 8) {
    return {squares, 0};
  } else {
    if (squares >= 0x1p-900 && squares <= 0x1p1000) return {squares, 0};
    const double largest = kernels.largest(run, n);
    if (squares != squares || largest == 0 || !is_finite(largest))
      return {squares != squares ? squares : largest, 0};
    const int exponent = std::ilogb(largest);
    const int factor = exponent < -1022 ? 1022 : exponent > 1022 ? -1022 : -exponent;
    return {kernels.scaled_squares(run, n, std::ldexp(1.0, factor)), -1.0 * factor};
  }
}

// The same of all elements, on several threads if there are many. The bits are power_sums's.
Scaled power_sum(const View& view, Order order);

// One pass over all elements.
std::vector<Scaled> power_sums(const std::vector<View>& views, const std::vector<Piece>& pieces,
                               Order order);
Scaled total(const std::vector<Scaled>& sums, Order order);

}  // namespace vegrad
