// Everything that one read of a buffer tells.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/buffers/norms.hpp"

namespace vegrad {

struct Statistics {
  Scaled squares, sum;                                        // Σ x², Σ x; nan and inf as they come
  double largest = 0;                                         // of |x| that is finite
  double smallest = std::numeric_limits<double>::infinity();  // of |x| that is finite and not zero
  std::int64_t count = 0, zeros = 0, subnormals = 0, infs = 0, nans = 0;
};

// How many finite elements have |x| in [2^e, 2^(e+1)), for all e of doubles.
class Histogram {
 public:
  static constexpr int kLowest = -1074, kHighest = 1023;
  Histogram() : counts_(kHighest - kLowest + 1) {}
  void add(int exponent, std::int64_t n) {
    counts_[exponent - kLowest].fetch_add(n, std::memory_order_relaxed);
  }
  std::int64_t operator[](int exponent) const { return counts_[exponent - kLowest]; }

 private:
  std::vector<std::atomic<std::int64_t>> counts_;
};

Statistics together(const Statistics& a, const Statistics& b);

// Of each buffer. `histograms`: one a buffer, or empty.
std::vector<Statistics> statistics(const std::vector<View>& views,
                                   std::vector<Histogram>& histograms);

}  // namespace vegrad
