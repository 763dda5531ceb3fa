#include "core/recurrent/schedule.hpp"

#include <numeric>

namespace vegrad {

void Schedule::arrange(int rows, int steps, const std::int64_t* lengths, bool end_together,
                       bool reversed) {
  uniform_ = !lengths ||
             std::all_of(lengths, lengths + rows, [steps](std::int64_t n) { return n == steps; });
  rows_ = rows;
  steps_ = steps;
  end_together_ = end_together;
  reversed_ = reversed;
  order_.resize(rows);
  lengths_.assign(rows, steps);
  std::iota(order_.begin(), order_.end(), 0);
  if (uniform_) return;
  // Stable without the memory that std::stable_sort takes.
  std::sort(order_.begin(), order_.end(), [lengths](int a, int b) {
    return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b;
  });
  for (int i = 0; i < rows; ++i) lengths_[i] = int(lengths[order_[i]]);
  counts_.resize(steps);
  for (int t = 0, n = rows; t < steps; ++t) {
    while (n > 0 && lengths_[n - 1] <= t) --n;
    counts_[end_together ? steps - 1 - t : t] = n;
  }
  before_.resize(steps + 1);
  states_before_.resize(steps + 2);
  before_[0] = states_before_[0] = 0;
  for (int t = 0; t < steps; ++t) before_[t + 1] = before_[t] + counts_[t];
  for (int t = -1; t < steps; ++t)
    states_before_[t + 2] = states_before_[t + 1] + std::max(count(t), count(t + 1));
}

int Schedule::begin_of(int i, int groups) const {
  if (i <= 0) return 0;
  if (i >= groups) return rows_;
  int row = int(std::int64_t(rows_) * i / groups);
  if (!uniform_) {
    const std::int64_t wanted = row_steps() * i / groups;
    std::int64_t sum = 0;
    for (row = 0; row < rows_ && sum + lengths_[row] / 2 < wanted; ++row) sum += lengths_[row];
  }
  return (row + kRowGroup / 2) / kRowGroup * kRowGroup;
}

}  // namespace vegrad
