#include "core/buffers/statistics.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {
namespace {

constexpr Order kL2{}, kSum{1};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double smallest_normal(Dtype dtype) {
  return std::ldexp(1.0, dtype == Dtype::kFloat64 ? -1022 : dtype == Dtype::kFloat16 ? -14 : -126);
}

// inf and nan apart from the rest.
template <class E>
void look_at_each(const E* run, std::size_t n, Statistics& out) {
  out.largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double x = std::fabs(to_double(run[i]));
    if (x != x)
      ++out.nans;
    else if (x == kInfinity)
      ++out.infs;
    else
      out.largest = std::max(out.largest, x);
  }
}

template <class E>
Statistics of_run(const RunKernels<E>& kernels, Dtype dtype, const E* run, std::size_t n) {
  Statistics out;
  RunSums sums;
  kernels.sums(run, n, sums);
  out.count = std::int64_t(n);
  out.squares = checked_squares(kernels, run, n, sums.squares);
  out.sum = {sums.sum, 0};
  out.largest = sums.largest;
  out.smallest = sums.smallest;
  if (!is_finite(sums.squares)) {
    look_at_each(run, n, out);
    if (!is_finite(sums.sum) && out.infs + out.nans == 0) {  // finite, but no double holds the sum
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i) sum += to_double(run[i]) * 0x1p-64;
      out.sum = {sum, 64};
    }
  }
  if (!(sums.smallest >= smallest_normal(dtype)) || sums.smallest == kInfinity) {
    RunCounts counts;
    kernels.counts(run, n, smallest_normal(dtype), counts);
    out.zeros = counts.zeros;
    out.subnormals = counts.subnormals;
    out.smallest = counts.smallest;
  }
  return out;
}

template <class E>
void add_to(Histogram& histogram, const E* run, std::size_t n) {
  std::int64_t counts[Histogram::kHighest - Histogram::kLowest + 1] = {};
  int lowest = Histogram::kHighest, highest = Histogram::kLowest;
  for (std::size_t i = 0; i < n; ++i) {
    const double x = to_double(run[i]);
    if (x == 0 || !is_finite(x)) continue;
    const int exponent = std::ilogb(x);
    lowest = std::min(lowest, exponent);
    highest = std::max(highest, exponent);
    ++counts[exponent - Histogram::kLowest];
  }
  for (int e = lowest; e <= highest; ++e)
    if (counts[e - Histogram::kLowest] > 0) histogram.add(e, counts[e - Histogram::kLowest]);
}

}  // namespace

Statistics together(const Statistics& a, const Statistics& b) {
  return {kL2.add(a.squares, b.squares),    kSum.add(a.sum, b.sum), std::max(a.largest, b.largest),
          std::min(a.smallest, b.smallest), a.count + b.count,      a.zeros + b.zeros,
          a.subnormals + b.subnormals,      a.infs + b.infs,        a.nans + b.nans};
}

std::vector<Statistics> statistics(const std::vector<View>& views,
                                   std::vector<Histogram>& histograms) {
  return fold<Statistics>(
      views, cut(views), false,
      [&](std::int64_t b, std::int64_t first, std::int64_t count) {
        const View& view = views[b];
        return with_dtype(view.dtype, [&](auto element) {
          using E = decltype(element);
          const RunKernels<E>& kernels = instruction_set().runs<E>();
          Statistics all;
          for_runs<false, E>(view, Layout(view), first, count, [&](const E* run, std::size_t n) {
            all = together(all, of_run(kernels, view.dtype, run, n));
            if (!histograms.empty()) add_to(histograms[b], run, n);
          });
          return all;
        });
      },
      together);
}

}  // namespace vegrad
