#include "core/buffers/clipping.hpp"

#include <algorithm>
#include <cmath>

#include "core/buffers/factor.hpp"

namespace vegrad {
namespace {

constexpr Order kL2{};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What a pass that writes leaves of a buffer or a part of it.
struct Written {
  Scaled squares;          // of the results
  double coefficient = 1;  // the smallest
  bool any = false;
};

Written together(const Written& a, const Written& b) {
  const bool first = a.coefficient <= b.coefficient || a.coefficient != a.coefficient;  // NaN too
  return {kL2.add(a.squares, b.squares), first ? a.coefficient : b.coefficient, a.any || b.any};
}

Written scale(const View& view, const Layout& layout, std::int64_t first, std::int64_t count,
              Factor factor, bool after_wanted = true) {
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

// Nothing to clip; but elements that are not finite may have to become zeros.
Written leave(const View& view, const Layout& layout, std::int64_t first, std::int64_t count) {
  if (!view.cleaned) return {squares_of(view, layout, first, count), 1, false};
  Written result = scale(view, layout, first, count, {});
  result.any = false;
  return result;
}

// The limit as the dtype holds it.
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

// The nearest number of a float's digits that is not above x; x itself where a float has fewer.
double within_float(double x) {
  if (!(x >= std::numeric_limits<float>::min()) || !(x <= 1)) return x;
  const float nearest = float(x);
  return nearest > x ? std::nextafter(nearest, 0.0f) : nearest;
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

// Adaptive gradient clipping: a unit is all of a buffer with one axis at most, else what the first
// axis counts.
struct Units {
  View view;  // of one unit
  Layout layout;
  char* first;
  std::int64_t stride = 0;

  explicit Units(const View& buffer)
      : view(buffer), layout(buffer, buffer.ndim < 2 ? 0 : 1, 0), first(layout.lowest) {
    if (buffer.ndim < 2) return;
    view.count = 1;
    for (int axis = 1; axis < buffer.ndim; ++axis) view.count *= buffer.shape[axis];
    stride = buffer.strides ? buffer.strides[0] : view.count * buffer.itemsize();
    const bool without_gaps =
        layout.ndim == 0 || (layout.ndim == 1 && layout.axes[0].stride == buffer.itemsize());
    const bool aligned = reinterpret_cast<std::uintptr_t>(buffer.data) % buffer.itemsize() == 0 &&
                         stride % buffer.itemsize() == 0;
    view.dense = without_gaps && aligned;
  }
  void go_to(std::int64_t number) { layout.lowest = first + number * stride; }
};

Written adapt(const Units& gradient, const Units& parameter, const Request& request,
              std::int64_t buffer, std::int64_t unit) {
  const View& view = gradient.view;
  const Scaled weight =
      kL2.root(squares_of(parameter.view, parameter.layout, 0, parameter.view.count));
  const double limit = request.limit * std::max(value(weight), request.eps);
  const Scaled squares = squares_of(view, gradient.layout, 0, view.count);
  Scaled norm = kL2.root(squares);
  const bool clipped =
      exceeds(norm, limit, Rounding(view.dtype), view.count, kL2) || norm.sum != norm.sum;
  if (value(norm) < 1e-6) norm = {1e-6, 0};
  const Factor factor = clipped ? ratio(limit, norm) : Factor{};
  if (request.consumer) {
    const double c = factor.value();
    request.consumer->take(buffer, unit * view.count, view.count, c, kInfinity, view.cleaned);
    return {{squares.sum * c * c, squares.exponent}, c, clipped};
  }
  if (clipped) return scale(view, gradient.layout, 0, view.count, factor);
  return view.cleaned ? leave(view, gradient.layout, 0, view.count) : Written{squares, 1, false};
}

}  // namespace

std::int64_t first_nonfinite(const View& view, double& found) {
  return with_dtype(view.dtype, [&](auto element) -> std::int64_t {
    using E = decltype(element);
    std::vector<std::int64_t> index(view.ndim);
    const char* p = view.data;
    for (std::int64_t i = 0; i < view.count; ++i) {
      E x;
      std::memcpy(&x, p, sizeof x);
      if (!is_finite(x)) return found = to_double(x), i;
      if (!view.strides) {
        p += sizeof x;
        continue;
      }
      for (int axis = view.ndim - 1; axis >= 0; --axis) {
        p += view.strides[axis];
        if (++index[axis] < view.shape[axis]) break;
        p -= view.shape[axis] * view.strides[axis];
        index[axis] = 0;
      }
    }
    return -1;
  });
}

namespace {

std::int64_t count_nonfinite(const View& view, std::int64_t first, std::int64_t count) {
  return with_dtype(view.dtype, [&](auto element) {
    using E = decltype(element);
    std::int64_t found = 0;
    for_runs<false, E>(view, Layout(view), first, count, [&](const E* run, std::size_t n) {
      for (std::size_t i = 0; i < n; ++i) found += !is_finite(run[i]);
    });
    return found;
  });
}

// One clipping: its buffers, their tasks, and what the first pass found.
class Clipping {
 public:
  Clipping(std::vector<View>& views, const Request& request)
      : views_(views),
        request_(request),
        pieces_(request.squares ? cut_evenly(views) : cut(views)) {}

  Clipped run(FirstNonFinite& first) {
    const KeepSubnormals keep;
    if (request_.rule != Rule::kNone) {
      measure();
      if (!handle_nonfinite(first)) return std::move(out_);
    }
    if (request_.rule == Rule::kGlobalNorm) {
      const double limit = request_.choose ? request_.choose(value(norm_)) : request_.limit;
      Rounding rounding(Dtype::kFloat64);
      for (const View& view : views_) rounding.widen(view.dtype);
      over_ = exceeds(norm_, limit, rounding, elements_of(views_), request_.order) ||
              norm_.sum != norm_.sum;
      if (limit == kInfinity) over_ = false;
      factor_ = ratio(limit, norm_);
      const bool wide = out_.dtypes >> unsigned(Dtype::kFloat64) & 1;
      if (request_.float_factor && !wide) factor_.first = within_float(factor_.first);
      if (!over_ && !cleaned_ && !request_.consumer) return std::move(out_);
    }
    if (request_.consumer)
      for (std::size_t b = 0; b < views_.size(); ++b) request_.consumer->begin(b);
    write();
    return std::move(out_);
  }

 private:
  bool known() const { return request_.squares && request_.order.p == 2; }

  void measure() {
    if (known())
      sums_.assign(request_.squares, request_.squares + views_.size());
    else
      sums_ = power_sums(views_, pieces_, request_.order);
    note_sums();
  }

  void note_sums() {
    norm_ = request_.order.root(total(sums_, request_.order));
    out_.norms.clear();
    if (request_.norms_wanted) {
      out_.norms.reserve(sums_.size());
      for (const Scaled& sum : sums_) out_.norms.push_back(value(request_.order.root(sum)));
    }
    for (const View& view : views_) out_.dtypes |= 1u << unsigned(view.dtype);
    out_.norm = out_.norm_after = value(norm_);
  }

  // Whether to go on.
  bool handle_nonfinite(FirstNonFinite& first) {
    if (is_finite(norm_.sum)) return true;
    const auto counts = fold<std::int64_t>(
        views_, pieces_, false,
        [&](std::int64_t b, std::int64_t from, std::int64_t n) {
          return is_finite(sums_[b].sum) ? 0 : count_nonfinite(views_[b], from, n);
        },
        [](std::int64_t a, std::int64_t b) { return a + b; });
    for (const std::int64_t count : counts) out_.nonfinite += count;
    if (out_.nonfinite == 0) return true;  // a sum of finite elements that no double can hold
    switch (request_.nonfinite) {
      case NonFinite::kRaise:
        first.buffer = std::find_if(counts.begin(), counts.end(), [](auto n) { return n > 0; }) -
                       counts.begin();
        first.flat = first_nonfinite(views_[first.buffer], first.value);
        return false;
      case NonFinite::kSkip:
        out_.skipped = true;
        return false;
      case NonFinite::kZero:
        for (std::size_t b = 0; b < views_.size(); ++b) views_[b].cleaned = counts[b] > 0;
        cleaned_ = true;
        measure();
        return true;
      default:
        return true;
    }
  }

  // Of a rule that looks at whole buffers: whether buffer b is clipped, and by what.
  bool factor_for(std::int64_t b, Factor& factor) const {
    if (request_.rule == Rule::kGlobalNorm) {
      if (over_) factor = factor_;
      return over_;
    }
    const View& view = views_[b];
    Scaled size = request_.order.root(sums_[b]);
    if (request_.rule == Rule::kBlockRms)
      size.sum /= std::sqrt(double(std::max<std::int64_t>(view.count, 1)));
    const double limit = request_.limits ? request_.limits[b] : request_.limit;
    // √count elements' roundings in a norm are one element's in their root mean square.
    const std::int64_t count = request_.rule == Rule::kBlockRms ? 1 : view.count;
    if (limit == kInfinity || (!exceeds(size, limit, Rounding(view.dtype), count, request_.order) &&
                               size.sum == size.sum))
      return false;
    factor = ratio(limit, size);
    return true;
  }

  Written hand_over(std::int64_t b, std::int64_t first, std::int64_t count) const {
    const View& view = views_[b];
    Written result;
    double limit = kInfinity;
    Factor factor;
    if (request_.rule == Rule::kValue) {
      limit = rounded_to(view.dtype, request_.limit);
      const double largest = largest_of(view, first, count);
      result.any = largest > limit;
      result.coefficient = result.any ? limit / largest : 1;
    } else if (request_.rule != Rule::kNone) {
      result.any = factor_for(b, factor);
      result.coefficient = factor.value();
    }
    result.squares = request_.consumer->take(b, first, count, factor.value(), limit, view.cleaned);
    return result;
  }

  Written write_part(std::int64_t b, std::int64_t first, std::int64_t count) const {
    if (request_.consumer) return hand_over(b, first, count);
    const View& view = views_[b];
    const Written unchanged{first == 0 ? sums_[b] : Scaled{}, 1, false};
    if (request_.rule == Rule::kValue) {
      // No element is larger than the norm.
      if (!view.cleaned && value(kL2.root(sums_[b])) <= rounded_to(view.dtype, request_.limit))
        return unchanged;
      return clamp(view, first, count, request_.limit);
    }
    Factor factor;
    const bool clipped = factor_for(b, factor);
    if (!clipped && !view.cleaned) return unchanged;
    const Layout layout(view);
    return clipped ? scale(view, layout, first, count, factor, request_.after_wanted)
                   : leave(view, layout, first, count);
  }

  void write() {
    const std::vector<Written> written =
        request_.rule == Rule::kAdaptive
            ? write_units()
            : fold<Written>(
                  views_, pieces_, true,
                  [&](std::int64_t b, std::int64_t first, std::int64_t count) {
                    return write_part(b, first, count);
                  },
                  together, request_.consumer ? 4 : 1);
    if (request_.rule == Rule::kNone) {
      if (known()) return measure();
      sums_.clear();
      for (const Written& one : written) sums_.push_back(one.squares);
      return note_sums();
    }
    Written all;
    for (const Written& one : written) all = together(all, one);
    out_.clipped = all.any;
    if (!all.any && !cleaned_) return;
    out_.coefficient = all.coefficient;
    for (View& view : views_) view.cleaned = false;
    if (request_.consumer && request_.rule != Rule::kValue && request_.rule != Rule::kAdaptive) {
      Scaled sum;
      for (std::size_t b = 0; b < views_.size(); ++b) {
        Factor factor;
        factor_for(b, factor);
        const double c = factor.value(), p = request_.order.p;
        const double power = request_.order.is_largest() ? c : p == 2 ? c * c : std::pow(c, p);
        sum = request_.order.add(sum, {sums_[b].sum * power, sums_[b].exponent});
      }
      out_.norm_after = value(request_.order.root(sum));
    } else if (!request_.after_wanted)
      out_.norm_after = std::numeric_limits<double>::quiet_NaN();
    else if (request_.order.p == 2)
      out_.norm_after = value(kL2.root(all.squares));
    else
      out_.norm_after = value(
          request_.order.root(total(power_sums(views_, pieces_, request_.order), request_.order)));
  }

  // Of each buffer, in pieces of some units.
  std::vector<Written> write_units() const {
    struct Range {
      std::int64_t buffer, first, count;
    };
    std::vector<Range> tasks;
    for (std::int64_t b = 0; b < std::int64_t(views_.size()); ++b) {
      const View& view = views_[b];
      if (view.ndim < 2) {
        tasks.push_back({b, 0, 1});
        continue;
      }
      const std::int64_t units = view.shape[0];
      std::int64_t step =
          std::max<std::int64_t>(1, kChunk * units / std::max<std::int64_t>(view.count, 1));
      step = std::max(step, units / kMostChunks);
      for (std::int64_t first = 0; first < units; first += step)
        tasks.push_back({b, first, std::min(step, units - first)});
    }
    std::vector<Written> of_task(tasks.size()), of_buffer(views_.size());
    const int n = int(tasks.size()), threads = std::min(n, team_for(2 * elements_of(views_)));
    parallel_for(n, threads, [&](int task, int) {
      const KeepSubnormals keep;
      const int number = backwards_in_share(task, n, threads);
      const Range& range = tasks[number];
      Written& result = of_task[number];
      Units gradient(views_[range.buffer]), parameter(request_.parameters[range.buffer]);
      for (std::int64_t i = range.first; i < range.first + range.count; ++i) {
        gradient.go_to(i);
        parameter.go_to(i);
        result = together(result, adapt(gradient, parameter, request_, range.buffer, i));
      }
    });
    for (int task = 0; task < n; ++task)
      of_buffer[tasks[task].buffer] = together(of_buffer[tasks[task].buffer], of_task[task]);
    return of_buffer;
  }

  std::vector<View>& views_;
  const Request& request_;
  std::vector<Piece> pieces_;
  std::vector<Scaled> sums_;
  Scaled norm_;
  Factor factor_;
  bool over_ = false, cleaned_ = false;
  Clipped out_;
};

}  // namespace

Clipped clip(std::vector<View>& views, const Request& request, FirstNonFinite& first) {
  return Clipping(views, request).run(first);
}

}  // namespace vegrad
