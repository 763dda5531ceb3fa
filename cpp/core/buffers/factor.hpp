// When a norm is above its limit, and the factor that brings it there.
#pragma once

#include <algorithm>

#include "core/buffers/norms.hpp"

namespace vegrad {

// By how much results that are rounded to a dtype may lie above what was asked of them: relative,
// and for each element where it is subnormal. For double the error of the sum is counted in.
struct Rounding {
  double relative = 0, absolute = 0;

  explicit Rounding(Dtype dtype) {
    switch (dtype) {
      case Dtype::kFloat16:
        relative = 0x1p-11, absolute = 0x1p-25;
        break;
      case Dtype::kBfloat16:
        relative = 0x1p-8, absolute = 0x1p-134;
        break;
      case Dtype::kFloat32:
        relative = 0x1p-24, absolute = 0x1p-150;
        break;
      case Dtype::kFloat64:
        relative = 0x1p-43, absolute = 0x1p-1074;
    }
  }

  void widen(Dtype dtype) {
    const Rounding other(dtype);
    relative = std::max(relative, other.relative);
    absolute = std::max(absolute, other.absolute);
  }
};

// Two factors, since one may be too small for a double; x · first · second.
struct Factor {
  double first = 1, second = 1;
  double value() const { return first * second; }
};

// The power of a factor, by which sums of powers of elements are multiplied where the elements are
// multiplied by the factor: without its power of two, which the power would lose where the factor
// is next to nothing.
class PowerOf {
 public:
  PowerOf(Factor factor, Order order);
  Scaled times(Scaled powers) const { return {powers.sum * power_, powers.exponent + exponent_}; }

 private:
  double power_;
  int exponent_;
};

// limit / norm.
Factor ratio(double limit, Scaled norm);

// Whether a norm is above the limit by more than the roundings of `count` elements: a norm that was
// clipped is not, so that clipping again changes nothing.
bool exceeds(Scaled norm, double limit, const Rounding& rounding, std::int64_t count, Order order);

}  // namespace vegrad
