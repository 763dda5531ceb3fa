#include "core/recurrent/flow.hpp"

#include <cmath>
#include <limits>

namespace vegrad {
namespace {

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

// log2 of the root of Σ squares 4^exponent over rows; -inf for 0.
template <class T>
double log2_norm(const T* squares, const std::int32_t* exponents, int rows) {
  // Four sums at once: one would wait for itself.
  double parts[4] = {};
  std::int32_t others = 0;
  for (int i = 0; i < rows; ++i) others |= exponents[i] ^ exponents[0];
  int i = 0;
  for (; i + 4 <= rows; i += 4)
    for (int k = 0; k < 4; ++k) parts[k] += double(squares[i + k]);
  for (; i < rows; ++i) parts[0] += double(squares[i]);
  const double plain = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  if (others == 0) return plain == 0 ? -HUGE_VAL : half_log2(plain, exponents[0]);
  std::int32_t largest = INT32_MIN;
  for (int i = 0; i < rows; ++i)
    if (!(squares[i] == 0)) largest = std::max(largest, exponents[i]);
  if (largest == INT32_MIN) return -HUGE_VAL;
  double sum = 0;
  for (int i = 0; i < rows; ++i)
    if (!(squares[i] == 0))
      sum += shifted(double(squares[i]), 2 * (std::int64_t(exponents[i]) - largest));
  return half_log2(sum, largest);
}

// The flow of one layer.
template <class T>
class LayerFlow {
 public:
  LayerFlow(const TimePass<T>& pass, int l, TimeFlowColumns& flow)
      : pass_(pass), l_(l), m_(pass.work.layers[l]), flow_(flow) {}

  void note(int t, bool passes) {
    const Schedule& schedule = pass_.schedule;
    const int n = schedule.count(t);
    const std::size_t at = std::size_t(l_) * schedule.steps() + t;
    if (n == 0) return;
    if (n != rows_) elements_ = 0.5 * std::log2(double(n) * pass_.shape.hidden);
    rows_ = n;
    const FlowSums<T>& sums = m_.sums;
    const double delta = norm(sums.delta, t, n);
    flow_.delta[at] = delta - elements_;
    flow_.hidden[at] = log2_norm(m_.hidden_squares + pass_.place(t),
                                 m_.hidden_exponents.data() + pass_.place(t), n) -
                       elements_;
    if (passes) note_gain(t, at, delta);
  }

 private:
  double norm(const T* squares, int t, int rows) const {
    return log2_norm(squares + pass_.place(t), m_.exponents.data() + pass_.place(t), rows);
  }

  // From step t to the step before, of the rows that both have.
  void note_gain(int t, std::size_t at, double delta) {
    const bool into_state = t == 0;
    const int there = pass_.schedule.count(t);
    const int n = into_state ? there : std::min(there, pass_.schedule.count(t - 1));
    if (n == 0) return;
    const auto before = [&](const T* of_step, const T* of_state) {
      return into_state ? log2_norm(of_state, m_.exponent.data(), n) : norm(of_step, t - 1, n);
    };
    const FlowSums<T>& sums = m_.sums;
    if (n < there) delta = norm(sums.delta, t, n);
    flow_.gain[at] = before(sums.passed, m_.first.passed) - delta;
    switch (pass_.shape.cell) {
      case Cell::lstm: {
        const double state = norm(sums.state, t, n);
        flow_.cell_gain[at] = before(sums.into_state, m_.first.into_state) - state;
        flow_.carry[at] = norm(sums.carried, t, n) - state;
        flow_.matrix[at] = into_state ? kNothing : norm(sums.matrix, t - 1, n) - state;
        break;
      }
      case Cell::gru:
        flow_.carry[at] = norm(sums.carried, t, n) - delta;
        flow_.matrix[at] = before(sums.matrix, m_.first.matrix) - delta;
        break;
      default:
        flow_.carry[at] = -HUGE_VAL;
        flow_.matrix[at] = flow_.gain[at];
    }
  }

  const TimePass<T>& pass_;
  const int l_;
  const LayerMemory<T>& m_;
  TimeFlowColumns& flow_;
  int rows_ = 0;
  double elements_ = 0;  // half the log2 of how many the rows have
};

}  // namespace

void TimeFlowColumns::begin(const RecurrentShape& shape, int steps) {
  const std::size_t n = std::size_t(shape.layers) * steps;
  for (std::vector<double>* column : {&delta, &gain, &cell_gain, &carry, &matrix, &hidden})
    column->assign(n, kNothing);
  carry_mean.assign(std::size_t(shape.layers) * shape.hidden, kNothing);
  carry_sums.assign(carry_mean.size(), 0.0);
  carry_count = 0;
}

template <class T>
void note_flow(const TimePass<T>& pass, int end, TimeFlowColumns& flow) {
  const int H = pass.shape.hidden, rows = pass.schedule.rows();
  flow.carry_count += double(pass.place(end));
  for (int l = 0; l < pass.shape.layers; ++l) {
    LayerFlow<T> layer(pass, l, flow);
    for (int t = pass.first; t < end; ++t) layer.note(t, t > pass.first || t == 0);
    if (!pass.shape.carries()) continue;
    const T* const sums = pass.work.layers[l].carry_sums;
    for (int j = 0; j < H; ++j) {
      double& sum = flow.carry_sums[std::size_t(l) * H + j];
      for (int group = 0; group * kRowGroup < rows; ++group)
        sum += double(sums[group * pass.sizes.slot + j]);
      flow.carry_mean[std::size_t(l) * H + j] = sum / flow.carry_count;
    }
  }
}

VEGRAD_FOR_BOTH_TYPES(note_flow)

}  // namespace vegrad
