#include "core/buffers/norms.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {

double times_power_of_two(double x, double exponent) {
  if (exponent == 0) return x;
  const double whole = std::floor(exponent);
  return std::ldexp(whole == exponent ? x : x * std::exp2(exponent - whole),
                    int(std::clamp(whole, -5000.0, 5000.0)));
}

namespace {

// Any other p: about the largest |x| of the run, so that no power leaves the range.
template <class E>
Scaled general_power_sum(const E* run, std::size_t n, double largest, double p) {
  if (largest == 0) return {};
  const int exponent = std::ilogb(largest);
  const bool whole = p <= 512;  // else a power of up to 2 is too much
  double lanes[kSumLanes] = {};
  for (std::size_t i = 0; i < n; ++i) {
    const double x = std::fabs(to_double(run[i]));
    lanes[i % kSumLanes] += std::pow(whole ? std::ldexp(x, -exponent) : x / largest, p);
  }
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return {lanes[0], whole ? exponent : std::log2(largest)};
}

template <class E>
Scaled run_power_sum(const RunKernels<E>& kernels, const E* run, std::size_t n, Order order) {
  if (order.p == 2) return checked_squares(kernels, run, n, kernels.squares(run, n));
  if (order.p == 1) {
    const double sum = kernels.magnitudes(run, n, 1);
    if (sizeof(E) < 8 || is_finite(sum) || !is_finite(kernels.largest(run, n))) return {sum, 0};
    return {kernels.magnitudes(run, n, 0x1p-64), 64};
  }
  const double largest = kernels.largest(run, n);
  const double magnitudes = kernels.magnitudes(run, n, 0);  // NaN where there is inf or NaN
  if (magnitudes != magnitudes)
    return {largest == std::numeric_limits<double>::infinity() &&
                    std::none_of(run, run + n, [](E x) { return to_double(x) != to_double(x); })
                ? largest
                : std::numeric_limits<double>::quiet_NaN(),
            0};
  if (order.is_largest()) return {largest, 0};
  return general_power_sum(run, n, largest, order.p);
}

}  // namespace

Scaled Order::add_with_care(Scaled a, Scaled b) const {
  if (is_largest()) return a.sum != a.sum || a.sum > b.sum ? a : b;
  if (a.exponent != b.exponent) {
    if (a.sum == 0) return b;
    if (b.sum == 0) return a;
    if (a.exponent < b.exponent) std::swap(a, b);
    b.sum = times_power_of_two(b.sum, (b.exponent - a.exponent) * p);
  }
  const double sum = a.sum + b.sum;
  if (!(std::fabs(sum) > 0x1p1000) || !is_finite(a.sum) || !is_finite(b.sum))
    return {sum, a.exponent};
  const double units = std::ceil(64 / p);
  return {times_power_of_two(a.sum, -units * p) + times_power_of_two(b.sum, -units * p),
          a.exponent + units};
}

Scaled Order::general_root(Scaled total) const {
  if (is_largest() || p == 1) return total;
  const double whole = std::floor(total.exponent);
  return {std::pow(total.sum, 1 / p) * std::exp2(total.exponent - whole), whole};
}

double log2_of(Scaled norm) { return std::log2(norm.sum) + norm.exponent; }

Scaled power_sum(const View& view, std::int64_t first, std::int64_t count, Order order) {
  return with_dtype(view.dtype, [&](auto element) {
    using E = decltype(element);
    const RunKernels<E>& kernels = instruction_set().runs<E>();
    // Squares of narrower types fit a double, so that nothing is looked at twice.
    if constexpr (sizeof(E) < 8)
      if (order.p == 2 && view.dense && !view.cleaned) {
        const char* const lowest = view.strides ? Layout(view).lowest : view.data;
        return Scaled{kernels.squares(reinterpret_cast<const E*>(lowest) + first, count), 0};
      }
    const Layout layout(view);
    Scaled sum;
    for_runs<false, E>(view, layout, first, count, [&](const E* run, std::size_t n) {
      sum = order.add(sum, run_power_sum(kernels, run, n, order));
    });
    return sum;
  });
}

Scaled power_sum(const View& view, Order order) {
  const std::int64_t part = part_of(view.count);
  const int n = int((view.count + part - 1) / part);
  if (n <= 1) {
    const KeepSubnormals keep;
    return power_sum(view, 0, view.count, order);
  }
  std::vector<Scaled> sums(n);
  shares_for(n, team_for(view.count), [&](int task, int) {
    const KeepSubnormals keep;
    const std::int64_t first = task * part;
    sums[task] = power_sum(view, first, std::min(part, view.count - first), order);
  });
  return total(sums, order);
}

std::vector<Scaled> power_sums(const std::vector<View>& views, const std::vector<Piece>& pieces,
                               Order order) {
  return fold<Scaled>(
      views, pieces, false,
      [&](std::int64_t buffer, std::int64_t first, std::int64_t count) {
        return power_sum(views[buffer], first, count, order);
      },
      [&](Scaled a, Scaled b) { return order.add(a, b); });
}

Scaled total(const std::vector<Scaled>& sums, Order order) {
  Scaled sum;
  for (const Scaled& one : sums) sum = order.add(sum, one);
  return sum;
}

}  // namespace vegrad
