#include "core/recurrent/decayed.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {
namespace {

// Σ h² of a row beyond these is not to be trusted, or soon will not be.
template <class T>
constexpr double kSmallest = sizeof(T) == 4 ? 0x1p-80 : 0x1p-800;
template <class T>
constexpr double kLargest = sizeof(T) == 4 ? 0x1p80 : 0x1p800;

double logistic(double z) { return 1 / (1 + std::exp(-z)); }

// One step of a row, all of whose numbers are those here times 2^unit, except for gates.
template <class T>
class DecayedStep {
 public:
  DecayedStep(const TimePass<T>& pass, int l, int t, int row)
      : pass_(pass), l_(l), t_(t), row_(row), H_(pass.shape.hidden) {}

  // From the state before to that after.
  void run(DecayedState& state) {
    const DecayedState* const below = l_ > 0 ? &pass_.work.layers[l_ - 1].decayed[row_] : nullptr;
    const bool from_below = below && pass_.work.layers[l_ - 1].is_decayed[row_];
    const std::int64_t input_unit = from_below ? below->exponent : 0;
    unit_ = std::max(state.exponent, input_unit);
    const T* const x = l_ == 0 ? pass_.request.x.at(pass_.schedule, row_, t_)
                               : pass_.h(l_ - 1, t_) + row_ * pass_.sizes.hidden;
    const int I = pass_.shape.inputs_of(l_);
    // A bias or an input of 0 holds nothing up: the unit is then the state's own.
    const bool held = held_up(x, I) && !from_below;
    if (!from_below) unit_ = held ? std::max<std::int64_t>(state.exponent, 0) : state.exponent;
    in_ = shifted(1, input_unit - unit_);
    of_state_ = shifted(1, state.exponent - unit_);
    state.next_h.resize(H_);
    state.next_c.resize(pass_.shape.has_c() ? H_ : 0);
    for (int j = 0; j < H_; ++j)
      state.next_h[j] = unit(j, from_below ? below->h.data() : nullptr, x, I, state);
    state.h.swap(state.next_h);
    state.c.swap(state.next_c);
    normalize(state);
  }

 private:
  bool held_up(const T* x, int I) const {
    const LayerWeights<const T>& w = pass_.weights[l_];
    for (int k = 0; k < I; ++k)
      if (x[k] != 0) return true;
    for (int k = 0; k < pass_.shape.gates() * H_; ++k) {
      const int gate = k / H_;
      const bool moves =
          pass_.shape.cell == Cell::lstm || pass_.shape.cell == Cell::gru ? gate == 2 : true;
      if (moves && ((w.bias_ih && w.bias_ih[k] != 0) || (w.bias_hh && w.bias_hh[k] != 0)))
        return true;
    }
    return false;
  }

  // The parts of a pre-activation, in units of 2^unit_: of the input and of the state.
  double of_input(int gate, int j, const double* below, const T* x, int I) const {
    const T* const row = pass_.weights[l_].weight_ih + (std::ptrdiff_t(gate) * H_ + j) * I;
    double sum = 0;
    for (int k = 0; k < I; ++k) sum += double(row[k]) * (below ? below[k] : double(x[k]));
    return sum == 0 ? 0 : sum * in_;
  }
  double of_state(int gate, int j, const DecayedState& state) const {
    const T* const row = pass_.weights[l_].weight_hh + (std::ptrdiff_t(gate) * H_ + j) * H_;
    double sum = 0;
    for (int k = 0; k < H_; ++k) sum += double(row[k]) * state.h[k];
    return sum * of_state_;
  }
  double bias(const T* of, int gate, int j) const { return of ? double(of[gate * H_ + j]) : 0.0; }

  double unit(int j, const double* below, const T* x, int I, DecayedState& state) {
    const LayerWeights<const T>& w = pass_.weights[l_];
    const auto both = [&](int g) { return of_input(g, j, below, x, I) + of_state(g, j, state); };
    const auto biases = [&](int g) { return bias(w.bias_ih, g, j) + bias(w.bias_hh, g, j); };
    const auto gate = [&](int g) { return logistic(shifted(both(g), unit_) + biases(g)); };
    const auto scaled = [&](double b) { return shifted(b, -unit_); };
    switch (pass_.shape.cell) {
      case Cell::relu:
        return std::max(both(0) + scaled(biases(0)), 0.0);
      case Cell::tanh:
        return bent(both(0) + scaled(biases(0)));
      case Cell::lstm: {
        double& c = state.next_c[j];
        c = gate(1) * state.c[j] * of_state_ + gate(0) * bent(both(2) + scaled(biases(2)));
        return gate(3) * bent(c);
      }
      case Cell::gru: {
        const double z = gate(1), m = of_state(2, j, state) + scaled(bias(w.bias_hh, 2, j));
        const double n =
            bent(of_input(2, j, below, x, I) + scaled(bias(w.bias_ih, 2, j)) + gate(0) * m);
        return (1 - z) * n + z * state.h[j] * of_state_;
      }
    }
    return 0;
  }

  // tanh, in units of 2^unit_.
  double bent(double z) const {
    const double value = shifted(z, unit_);
    return std::fabs(value) < 0x1p-30 ? z : shifted(std::tanh(value), -unit_);
  }

  void normalize(DecayedState& state) const {
    double largest = 0;
    for (const std::vector<double>* of : {&state.h, &state.c})
      for (const double x : *of) largest = std::max(largest, std::fabs(x));
    const int shift = largest > 0 && std::isfinite(largest) ? std::ilogb(largest) : 0;
    for (std::vector<double>* of : {&state.h, &state.c})
      for (double& x : *of) x = std::ldexp(x, -shift);
    state.exponent = unit_ + shift;
  }

  const TimePass<T>& pass_;
  const int l_, t_, row_, H_;
  std::int64_t unit_ = 0;
  double in_ = 1, of_state_ = 1;
};

template <class T>
void set_from(DecayedState& state, const T* h, const T* c, int H) {
  state.h.assign(h, h + H);
  if (c) state.c.assign(c, c + H);
  state.exponent = 0;
}

// Σ h² of a row from and to which its h is in range.
template <class T>
bool in_range(T squares, int H) {
  return squares >= T(kSmallest<T> * H) && squares <= T(kLargest<T> * H);
}

// Whether no row's state is out of range, nor was it a step before.
template <class T>
bool nothing_to_follow(TimePass<T>& pass, int l, int t, RowRange rows) {
  LayerMemory<T>& m = pass.work.layers[l];
  const T* const squares = m.hidden_squares + pass.place(t);
  bool found = false;
  for (int i = rows.begin; i < rows.end; ++i)
    found |= m.is_decayed[i] | !in_range(squares[i], pass.shape.hidden);
  if (found) return false;
  const auto exponents = m.hidden_exponents.begin() + pass.place(t);
  std::fill(exponents + rows.begin, exponents + rows.end, 0);
  return true;
}

template <class T>
void follow_row(TimePass<T>& pass, int l, int t, int i) {
  LayerMemory<T>& m = pass.work.layers[l];
  const std::ptrdiff_t ld = pass.sizes.hidden;
  const int H = pass.shape.hidden;
  T& squares = m.hidden_squares[pass.place(t) + i];
  std::int32_t& exponent = m.hidden_exponents[pass.place(t) + i] = 0;
  DecayedState& state = m.decayed[i];
  if (in_range(squares, H)) {
    m.is_decayed[i] = false;
    return;
  }
  if (!m.is_decayed[i])
    set_from(state, pass.h(l, t - 1) + i * ld, m.c ? pass.c(l, t - 1) + i * ld : nullptr, H);
  DecayedStep<T>(pass, l, t, i).run(state);
  double sum = 0;
  for (const double x : state.h) sum += x * x;
  m.is_decayed[i] = sum != 0;
  if (!(sum > 0) || !std::isfinite(sum)) return;
  const int shift = std::ilogb(sum) / 2;
  squares = T(std::ldexp(sum, -2 * shift));
  exponent =
      std::int32_t(std::clamp<std::int64_t>(state.exponent + shift, INT32_MIN / 4, INT32_MAX / 4));
  if (pass.shape.cell != Cell::relu) return;
  T* const slopes = pass.gates(l, t) + i * pass.sizes.gates;
  for (int j = 0; j < H; ++j) slopes[j] = T(state.h[j] > 0);
}

}  // namespace

template <class T>
void follow_decayed(TimePass<T>& pass, int t, RowRange rows) {
  for (int l = 0; l < pass.shape.layers; ++l) {
    if (nothing_to_follow(pass, l, t, rows)) continue;
    for (int i = rows.begin; i < rows.end; ++i) follow_row(pass, l, t, i);
  }
}

VEGRAD_FOR_BOTH_TYPES(follow_decayed)

}  // namespace vegrad
