// What clipping does to a buffer or a part of one, and what that leaves.
#pragma once

#include <limits>

#include "core/buffers/factor.hpp"

namespace vegrad {

constexpr Order kL2{};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What a pass that writes leaves of a buffer or a part of it.
struct Written {
  Scaled squares;          // of the results
  double coefficient = 1;  // the smallest
  bool any = false;        // whether anything was clipped
};

Written together(const Written& a, const Written& b);

// Σ x² of elements `first` to `first + count`, and the largest |x|.
Scaled squares_of(const View& view, const Layout& layout, std::int64_t first, std::int64_t count);
double largest_of(const View& view, std::int64_t first, std::int64_t count);

// The elements times the factor; squares are NaN unless wanted.
Written scale(const View& view, const Layout& layout, std::int64_t first, std::int64_t count,
              Factor factor, bool after_wanted = true);

// Nothing to clip; but elements that are not finite may have to become zeros.
Written leave(const View& view, const Layout& layout, std::int64_t first, std::int64_t count);

// The elements within ±limit.
Written clamp(const View& view, std::int64_t first, std::int64_t count, double limit);

// The limit as the dtype holds it.
double rounded_to(Dtype dtype, double x);

}  // namespace vegrad
