// Which rows are there at which step, and where they stand in memory.
//
// Rows are sorted by length, longest first, so that those of a step are the first n of it. Where
// the output is that of the last step, rows end together; else they begin together. Memory is
// time-major and packed: a step's rows follow those of the step before. h and c of a step have
// room for the initial states of rows that begin at the next one, so that "the step before" is one
// matrix for every step; they begin with step -1. Reversed: each row is read from its end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cell_table.hpp"

namespace vegrad {

class Schedule {
 public:
  // `lengths` (B), each of 1 … T, or null: all T.
  void arrange(int rows, int steps, const std::int64_t* lengths, bool end_together,
               bool reversed = false);

  int rows() const { return rows_; }
  int steps() const { return steps_; }
  bool uniform() const { return uniform_; }
  std::int64_t row_steps() const { return place(steps_); }  // Σ lengths

  int row_of(int sorted) const { return order_[sorted]; }  // the caller's
  int length(int sorted) const { return lengths_[sorted]; }
  // The caller's step of a sorted row at step t.
  int step_of(int sorted, int t) const {
    if (reversed_) return lengths_[sorted] - 1 - t;
    return end_together_ ? t - steps_ + lengths_[sorted] : t;
  }
  // How many rows are there at step t; 0 before the first and after the last.
  int count(int t) const { return t < 0 || t >= steps_ ? 0 : uniform_ ? rows_ : counts_[t]; }
  // The place of the first row of step t among all.
  std::int64_t place(int t) const { return uniform_ ? std::int64_t(t) * rows_ : before_[t]; }
  // The same in h and c, from t = -1 on.
  std::int64_t state_place(int t) const {
    return uniform_ ? std::int64_t(t + 1) * rows_ : states_before_[t + 1];
  }

  // Sorted rows in `groups` parts of about equal work: where part i begins.
  int begin_of(int i, int groups) const;

 private:
  int rows_ = 0, steps_ = 0;
  bool end_together_ = false, reversed_ = false, uniform_ = true;
  std::vector<int> order_, lengths_;
  std::vector<int> counts_;  // these of every step, unless all rows have the same
  std::vector<std::int64_t> before_, states_before_;
};

}  // namespace vegrad
