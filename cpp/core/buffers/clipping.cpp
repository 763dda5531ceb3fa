#include "core/buffers/clipping.hpp"

#include <algorithm>
#include <cmath>

#include "core/buffers/adaptive.hpp"
#include "core/buffers/rewrite.hpp"

namespace vegrad {

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

// The nearest number of a float's digits that is not above x; x itself where a float has fewer.
double within_float(double x) {
  if (!(x >= std::numeric_limits<float>::min()) || !(x <= 1)) return x;
  const float nearest = float(x);
  return nearest > x ? std::nextafter(nearest, 0.0f) : nearest;
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
      if (limit == -kInfinity) {
        out_.skipped = true;
        return std::move(out_);
      }
      Rounding rounding(Dtype::kFloat64);
      for (int dtype = 0; dtype < 4; ++dtype)
        if (out_.dtypes >> dtype & 1) rounding.widen(Dtype(dtype));
      over_ = exceeds(norm_, limit, rounding, elements_of(views_), request_.order) ||
              norm_.sum != norm_.sum || limit != limit;
      if (limit == kInfinity) over_ = false;
      factor_ = ratio(limit, norm_);
      const bool wide = out_.dtypes >> unsigned(Dtype::kFloat64) & 1;
      if (request_.float_factor && !wide) factor_.first = within_float(factor_.first);
      if (!over_ && !cleaned_ && !request_.consumer) return std::move(out_);
    }
    if (request_.consumer) request_.consumer->begin();
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
    result.squares = request_.consumer->take(b, first, count, factor, limit, view.cleaned);
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
            ? clip_adaptively(views_, request_)
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
    const bool global = request_.rule == Rule::kGlobalNorm && !views_.empty();
    Written all;
    if (global) {  // one factor says what became of all
      all = {{}, over_ ? factor_.value() : 1, over_};
      if (request_.after_wanted && request_.order.p == 2 && !request_.consumer)
        for (const Written& one : written) all.squares = kL2.add(all.squares, one.squares);
    } else {
      for (const Written& one : written) all = together(all, one);
    }
    out_.clipped = all.any;
    if (!all.any && !cleaned_) return;
    out_.coefficient = all.coefficient;
    if (cleaned_)
      for (View& view : views_) view.cleaned = false;
    if (global && request_.consumer) {
      const PowerOf power(over_ ? factor_ : Factor{}, request_.order);
      out_.norm_after = value(request_.order.root(power.times(total(sums_, request_.order))));
    } else if (request_.consumer && request_.rule != Rule::kValue &&
               request_.rule != Rule::kAdaptive) {
      Scaled sum;
      for (std::size_t b = 0; b < views_.size(); ++b) {
        Factor factor;
        factor_for(b, factor);
        sum = request_.order.add(sum, PowerOf(factor, request_.order).times(sums_[b]));
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
