// Clipping in place: what is measured first, what is written then. Formulas: Python's docstrings.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "core/buffers/factor.hpp"
#include "core/buffers/norms.hpp"

namespace vegrad {

enum class NonFinite { kRaise, kSkip, kZero, kPropagate };

// The first element that is not finite, in the order of the list and then of the axes.
struct FirstNonFinite {
  std::int64_t buffer = -1, flat = 0;
  double value = 0;
};

// The first element of `view` that is not finite in C order, as a flat number; -1 if there is none.
std::int64_t first_nonfinite(const View& view, double& value);

struct Clipped {
  double norm = 0, norm_after = 0, coefficient = 1;
  bool clipped = false, skipped = false;
  std::int64_t nonfinite = 0;
  std::vector<double> norms;  // of each buffer, before
  unsigned dtypes = 0;        // bit Dtype of each that a buffer has
};

// Takes the clipped gradient instead of having it written: a step of an optimizer.
class Consumer {
 public:
  virtual ~Consumer() = default;
  virtual void begin() = 0;  // before any run of any buffer, on the caller's thread
  // Elements `first` to `first + count` in C order; the gradient within ±limit, times factor, and
  // zero where `cleaned` and not finite. Returns Σ of the squares of what was used.
  virtual Scaled take(std::int64_t buffer, std::int64_t first, std::int64_t count, Factor factor,
                      double limit, bool cleaned) = 0;
};

enum class Rule { kNone, kValue, kNorm, kGlobalNorm, kBlockRms, kLimits, kAdaptive };

struct Request {
  Rule rule;
  Order order{};
  NonFinite nonfinite = NonFinite::kRaise;
  double limit = std::numeric_limits<double>::infinity();
  const double* limits = nullptr;  // kLimits: the largest norm of each buffer
  // kGlobalNorm: the limit from the norm, -inf to skip the step, unless empty.
  std::function<double(double)> choose;
  bool float_factor = false;         // kGlobalNorm: rounded down to one, unless for doubles
  double eps = 0;                    // kAdaptive
  const View* parameters = nullptr;  // kAdaptive: one a buffer
  Consumer* consumer = nullptr;      // nothing is written, but it takes every buffer
  bool after_wanted = true;          // else norm_after may be NaN
  bool norms_wanted = true;          // else there are none
  const Scaled* squares = nullptr;   // of each buffer, finite, if somebody has summed them
};

// Clips the buffers, which must not overlap. With NonFinite::kRaise, where there is an element that
// is not finite, nothing is written and `first` names it.
Clipped clip(std::vector<View>& views, const Request& request, FirstNonFinite& first);

// The numbers of two views that share bytes, the lower first, of which one at least is among
// `views` and one may be among `others`, which are numbered from views.size(); one number twice if
// a view overlaps itself.
std::optional<std::pair<std::size_t, std::size_t>> find_overlap(
    const std::vector<View>& views, const std::vector<View>& others = {});

}  // namespace vegrad
