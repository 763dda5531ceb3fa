#include "core/buffers/rewrite.hpp"

#include <algorithm>

namespace vegrad {

Written together(const Written& a, const Written& b) {
  const bool first = a.coefficient <= b.coefficient || a.coefficient != a.coefficient;  // NaN too
  return {kL2.add(a.squares, b.squares), first ? a.coefficient : b.coefficient, a.any || b.any};
}

Written scale(const View& view, const Layout& layout, std::int64_t first, std::int64_t count,
              Factor factor, bool after_wanted) {
  return with_dtype(view.dtype, [&](auto element) {
    using E = decltype(element);
    const RunKernels<E>& kernels = instruction_set().runs<E>();
    Written result{{}, factor.value(), true};
    if (!after_wanted) {
      for_runs<true, E>(view, layout, first, count, [&](E* run, std::size_t n) {
        kernels.scale_only(run, n, factor.first, factor.second);
      });
      result.squares = {std::numeric_limits<double>::quiet_NaN(), 0};
      return result;
    }
    for_runs<true, E>(view, layout, first, count, [&](E* run, std::size_t n) {
      const double squares = kernels.scale(run, n, factor.first, factor.second);
      result.squares = kL2.add(result.squares, checked_squares(kernels, run, n, squares));
    });
    return result;
  });
}

Scaled squares_of(const View& view, const Layout& layout, std::int64_t first, std::int64_t count) {
  return with_dtype(view.dtype, [&](auto element) {
    using E = decltype(element);
    const RunKernels<E>& kernels = instruction_set().runs<E>();
    Scaled sum;
    for_runs<false, E>(view, layout, first, count, [&](const E* run, std::size_t n) {
      sum = kL2.add(sum, checked_squares(kernels, run, n, kernels.squares(run, n)));
    });
    return sum;
  });
}

Written leave(const View& view, const Layout& layout, std::int64_t first, std::int64_t count) {
  if (!view.cleaned) return {squares_of(view, layout, first, count), 1, false};
  Written result = scale(view, layout, first, count, {});
  result.any = false;
  return result;
}

double rounded_to(Dtype dtype, double x) {
  return with_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    E one[1];
    if constexpr (sizeof(E) == 8) {
      return x;
    } else if constexpr (sizeof(E) == 4) {
      return double(float(x));
    } else {
      const E unit{std::uint16_t(std::is_same_v<E, float16> ? 0x3c00 : 0x3f80)};
      one[0] = unit;
      instruction_set().runs<E>().scale(one, 1, x, 1);
      return to_double(one[0]);
    }
  });
}

double largest_of(const View& view, std::int64_t first, std::int64_t count) {
  return with_dtype(view.dtype, [&](auto element) {
    using E = decltype(element);
    double largest = 0;
    for_runs<false, E>(view, Layout(view), first, count, [&](const E* run, std::size_t n) {
      largest = std::max(largest, instruction_set().runs<E>().largest(run, n));
    });
    return largest;
  });
}

Written clamp(const View& view, std::int64_t first, std::int64_t count, double limit) {
  const double bound = rounded_to(view.dtype, limit);
  return with_dtype(view.dtype, [&](auto element) {
    using E = decltype(element);
    const RunKernels<E>& kernels = instruction_set().runs<E>();
    const Layout layout(view);
    const double largest = largest_of(view, first, count);
    if (!(largest > bound)) return leave(view, layout, first, count);
    Written result{{}, bound / largest, true};
    for_runs<true, E>(view, layout, first, count, [&](E* run, std::size_t n) {
      const double squares = kernels.clamp(run, n, bound);
      result.squares = kL2.add(result.squares, checked_squares(kernels, run, n, squares));
    });
    return result;
  });
}

}  // namespace vegrad
