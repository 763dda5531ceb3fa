#include "core/buffers/factor.hpp"

#include <cmath>

namespace vegrad {

PowerOf::PowerOf(Factor factor, Order order) {
  int first = 0, second = 0;
  const double m = std::frexp(factor.first, &first) * std::frexp(factor.second, &second);
  power_ = order.is_largest() ? m : order.p == 2 ? m * m : std::pow(m, order.p);
  exponent_ = first + second;
}

Factor ratio(double limit, Scaled norm) {
  if (limit == 0 || norm.sum == 0 || !is_finite(norm.sum)) return {limit / norm.sum, 1};
  int limit_exponent, norm_exponent;
  const double quotient = std::frexp(limit, &limit_exponent) / std::frexp(norm.sum, &norm_exponent);
  const int exponent = limit_exponent - norm_exponent - int(norm.exponent);
  if (exponent > -1000) return {std::ldexp(quotient, exponent), 1};
  // A power of two, so that nothing is rounded twice where the result is not next to nothing.
  const int first = exponent > -2000 ? -1000 : -1074;
  return {std::ldexp(1.0, first), std::ldexp(quotient, exponent - first)};
}

bool exceeds(Scaled norm, double limit, const Rounding& rounding, std::int64_t count, Order order) {
  if (limit == 0) return norm.sum > 0;
  const double n = double(count), p = order.p, most = limit * (1 + rounding.relative);
  const double each = rounding.absolute;
  double reached;
  if (p == 2)
    reached = most + each * std::sqrt(n);
  else if (p >= 1)
    reached = most + each * std::pow(n, 1 / p);
  else
    reached = std::pow(std::pow(most, p) + n * (std::exp2(p) - 1) * std::pow(each, p), 1 / p);
  return norm.sum > (norm.exponent == 0 ? reached : std::ldexp(reached, -int(norm.exponent)));
}

}  // namespace vegrad
